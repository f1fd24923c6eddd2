"""What a federation strategy is. A whole one, in a file of its own:

    @dataclass(frozen=True)
    class FedProx(Strategy):
        proximal_mu: float = 0.01

        def plan(self, stage: int, num_blocks: int) -> StagePlan:
            return StagePlan(num_blocks, trainable=range(num_blocks), upload=range(num_blocks))

        def local_loss(self, step: LocalStep) -> Tensor | None:
            pulls = [(w - step.received[name]).square().sum() for name, w in step.trained.items()]
            return self.proximal_mu / 2 * torch.stack(pulls).sum()

Its fields are its configuration: `strategy={name: path/to/fedprox.py, proximal_mu: 0.1}`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from fedbench.config.load import suggest
from fedbench.errors import UserError
from fedbench.federation.plan import StagePlan
from fedbench.plugins import load_plugin

if TYPE_CHECKING:
    from torch import Tensor

    from fedbench.ssl import StepOutput

    StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class ClientUpdate:
    """What the server decoded from a client's upload.

    Attributes:
        client: its number, 0-based.
        num_samples: |D^n|.
        state: the uploaded tensors, by key of the model's online state.
    """

    client: int
    num_samples: int
    state: StateDict


@dataclass(frozen=True)
class LocalStep:
    """One local training step as an added loss term sees it.

    Attributes:
        output: the SSL method's loss and projections.
        trained: the parameters under training, by key.
        received: the tensors of this round's payload, by the same keys; detached, on the model's device.
    """

    output: StepOutput
    trained: Mapping[str, Tensor]
    received: Mapping[str, Tensor]


@dataclass(frozen=True)
class Strategy(ABC):
    """A row of [LW] Table 1. `plan` is required; the rest has the defaults of federated averaging."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    @abstractmethod
    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        """The plan of `stage` (1-based) for an encoder of `num_blocks` blocks."""

    def num_stages(self, num_blocks: int) -> int:
        """Stages S of the whole training; one unless the encoder grows."""
        return 1

    def local_loss(self, step: LocalStep) -> Tensor | None:
        """A term added to the SSL loss, or None."""
        return None

    def aggregate(self, updates: Iterable[ClientUpdate]) -> StateDict:
        """The server's new values from this round's updates, which arrive one by one.

        The clients train while `updates` is consumed, so that one update is in memory at a time.
        An empty result (no client returned) keeps the model.
        """
        return weighted_mean(updates)


@dataclass(frozen=True)
class GrowingStrategy(Strategy):
    """A strategy whose encoder grows by `blocks_per_stage` blocks a stage; the last stage takes the rest."""

    blocks_per_stage: Annotated[int, Field(ge=1)] = 1  # [LW] Table 3 varies this

    def num_stages(self, num_blocks: int) -> int:
        """S = blocks / blocks per stage, rounded up."""
        return ceil(num_blocks / self.blocks_per_stage)

    def newest_blocks(self, stage: int, num_blocks: int) -> range:
        """L_s: the blocks that stage `stage` (1-based) adds."""
        start = (stage - 1) * self.blocks_per_stage
        return range(start, min(start + self.blocks_per_stage, num_blocks))


def weighted_mean(updates: Iterable[ClientUpdate]) -> StateDict:
    """M <- sum_n w_n M^n with w_n = |D^n| / sum_m |D^m|  ([LW] Algorithm 1, lines 8 and 10).

    A running sum in float64: the mean of equal values is that value, bit for bit. Integer buffers
    (BatchNorm's step counter) are rounded.
    """
    sums: StateDict = {}
    dtypes: dict[str, Any] = {}
    num_samples = 0
    for update in updates:
        num_samples += update.num_samples
        for key, value in update.state.items():
            term = value.double() * update.num_samples
            sums[key] = sums[key].add_(term) if key in sums else term
            dtypes[key] = value.dtype
    return {key: _cast(total / num_samples, dtypes[key]) for key, total in sums.items()}


def _cast(mean: Tensor, dtype: Any) -> Tensor:
    return mean.to(dtype) if dtype.is_floating_point else mean.round().to(dtype)


def load_strategy(config: Mapping[str, Any]) -> Strategy:
    """The strategy of `{"name": ..., fields ...}`.

    Raises:
        UserError: the name is unknown, or a field is unknown or of the wrong type.
    """
    fields = {key: value for key, value in config.items() if key != "name"}
    cls = load_plugin("strategies", config["name"], Strategy)  # type: ignore[type-abstract]
    try:
        return TypeAdapter(cls).validate_python(fields)
    except ValidationError as error:
        allowed = list(getattr(cls, "__dataclass_fields__", {}))
        lines = [_explain(details["loc"], details, allowed) for details in error.errors()]
        raise UserError("\n".join([f"strategy {config['name']!r} is not valid:", *lines])) from error


def _explain(location: tuple[int | str, ...], details: Any, allowed: list[str]) -> str:
    key = ".".join(["strategy", *map(str, location)])
    if details["type"] == "unexpected_keyword_argument":
        return f"  {key}: unknown key; {suggest(str(location[-1]), allowed)}"
    return f"  {key}: {details['msg'].removeprefix('Value error, ')} (got {details['input']!r})"
