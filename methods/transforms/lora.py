"""LoRA (arXiv:2106.09685): given weights stay, each linear layer of the blocks learns a low-rank addition."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from fedbench.encoders import Encoder, Transform
from fedbench.encoders.tensor_groups import GIVEN, StateDict
from fedbench.encoders.transform import Given, check_order, linear_layers
from fedbench.errors import UserError


class Adapted(nn.Module):
    """W x + b + scale B A x, (..., I) -> (..., O): W and b are given, A (r, I) and B (O, r) are trained."""

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.given = layer
        self.down = nn.Parameter(torch.empty(rank, layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """The layer and its addition, which is zero at the start."""
        return self.given(x) + self.scale * F.linear(F.linear(x, self.down), self.up)


@dataclass(frozen=True)
class LoRA(Transform):
    """Nothing of the encoder is trained but A and B; the heads are. A client is sent the given weights once.

    They are those of `encoder.init`; without it, random ones. `export` merges: W + scale B A.
    """

    keeps_weights: ClassVar[bool] = True

    rank: Annotated[PositiveInt, Field(le=100_000)] = 8
    """r; no more than the layer's smaller side."""
    alpha: PositiveFloat = 16.0
    """The addition's scale is alpha / r."""

    @property
    def scale(self) -> float:
        """Of the addition."""
        return self.alpha / self.rank

    def apply(self, encoder: Encoder) -> None:
        """Give every linear layer of the blocks an addition, keep all other weights as they are."""
        check_order(encoder, "lora")
        encoder.stem, encoder.norm = Given(encoder.stem), Given(encoder.norm)
        if not self._adapt(encoder.blocks):
            raise UserError("encoder.transforms: lora finds no linear layer in the blocks; allowed: a transformer")

    def _adapt(self, module: nn.Module) -> int:
        """Number of layers that got an addition."""
        adapted = 0
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                rank = min(self.rank, child.in_features, child.out_features)
                setattr(module, name, Adapted(child, rank, self.scale))
                adapted += 1
            elif [*child.parameters(recurse=False), *child.buffers(recurse=False)]:
                if linear_layers(child):
                    raise UserError(
                        f"encoder.transforms: lora cannot keep the tensors of {type(child).__name__} that lie "
                        "beside its linear layers; allowed: each in a module of its own"
                    )
                setattr(module, name, Given(child))
            else:
                adapted += self._adapt(child)
        return adapted

    def merge(self, state: Mapping[str, Tensor]) -> StateDict:
        """One weight for each layer, under its old name."""
        merged = dict(state)
        for key in state:
            if key.endswith(".up"):
                layer = key.removesuffix(".up")
                addition = self.scale * merged.pop(key) @ merged.pop(f"{layer}.down")
                merged[f"{layer}.{GIVEN}.weight"] = merged[f"{layer}.{GIVEN}.weight"] + addition
        return {key.replace(f".{GIVEN}.", "."): value for key, value in merged.items()}
