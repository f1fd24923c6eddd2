"""What a transform of an encoder is. A whole one, in a file of its own:

    @dataclass(frozen=True)
    class Wider(Transform):
        factor: int = 2

        def apply(self, encoder: Encoder) -> None:
            for block in encoder.blocks:
                block.mlp = Mlp(encoder.feature_dim, self.factor * encoder.feature_dim)

It changes the whole encoder in place and leaves stem, blocks and norm, whatever the strategy. Its fields are its
configuration: `encoder.transforms=[{name: ./wider.py, factor: 4}]`. A file in `methods/transforms/` is registered
by its name; a package registers its own in the entry point group `fedbench.transforms`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import ConfigDict
from torch import Tensor, nn

from fedbench.encoders.encoder import Encoder
from fedbench.encoders.tensor_groups import GIVEN, StateDict
from fedbench.errors import UserError
from fedbench.plugin_fields import FIELDS


@dataclass(frozen=True)
class Transform(ABC):
    """A change of an encoder's layers before anything is trained."""

    __pydantic_config__: ClassVar[ConfigDict] = FIELDS

    keeps_weights: ClassVar[bool] = False
    """Whether the encoder's own weights stay as they were given (`Given`)."""

    @abstractmethod
    def apply(self, encoder: Encoder) -> None:
        """Change the whole encoder, which has its initial values; new ones from torch's global generator."""

    def merge(self, state: Mapping[str, Tensor]) -> StateDict | None:
        """A trained encoder's tensors as those of the encoder without it; None: there is no such form."""
        return None


class Transparent(nn.Module):
    """Stands in place of a module, which is its submodule `inside`: what that has, who looks for it here finds."""

    inside: ClassVar[str]

    def __getattr__(self, name: str) -> Any:
        """A tensor or module of its own, else what the module has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__(self.inside), name)


class Given(Transparent):
    """A module whose weights are given: nobody trains them, and they are in eval mode always.

    Its tensors are in a group of their own, beside that of the part that they are in: a client is sent them once.
    """

    inside = GIVEN

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        setattr(self, GIVEN, module.eval())

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """As the module."""
        return getattr(self, GIVEN)(*inputs, **options)

    def train(self, mode: bool = True) -> "Given":
        """Stay in eval mode."""
        return super().train(False)


class Carrier(Transparent):
    """A module that has the weights of another one with it, which somebody else calls."""

    inside = "module"

    def __init__(self, module: nn.Module, carried: nn.Module) -> None:
        super().__init__()
        self.module, self.carried = module, carried

    def forward(self, *inputs: Any) -> Any:
        """As the module."""
        return self.module(*inputs)


class Shared(nn.Module):
    """Calls a module that is registered elsewhere, so that its weights are there once."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = (module,)  # no submodule; a copy of the encoder copies both to one

    def forward(self, *inputs: Any) -> Any:
        """As the module."""
        return self._module[0](*inputs)


def check_order(encoder: Encoder, name: str) -> None:
    """UserError: transform `name` comes behind one that has to come behind it."""
    for module in encoder.modules():
        if isinstance(module, Shared | Given):
            other = "one MLP for all blocks" if isinstance(module, Shared) else "weights that are kept as given"
            raise UserError(
                f"encoder.transforms: {name} behind a transform that makes {other}; allowed: in front of it"
            )


def linear_layers(module: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Parent, name there and layer of every linear layer in a module."""
    return [
        (parent, name, child)
        for parent in list(module.modules())
        for name, child in list(parent.named_children())
        if isinstance(child, nn.Linear)
    ]
