"""Mine: what it changes in one line, and whose idea it is (arXiv number, section)."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from fedbench.encoders import Encoder, Transform


class Scaled(nn.Module):
    """A block whose output is multiplied by a number that is trained."""

    def __init__(self, block: nn.Module, start: float, width: int) -> None:
        super().__init__()
        self.block = block
        self.scale = nn.Linear(1, width, bias=False)
        nn.init.constant_(self.scale.weight, start)

    def forward(self, x: Tensor) -> Tensor:
        """As the block, times the scale of each dimension."""
        return self.block(x) * self.scale.weight[:, 0]


@dataclass(frozen=True)
class Mine(Transform):
    """Scales each dimension of what a transformer block gives on."""

    start: Annotated[PositiveFloat, Field(le=100)] = 1.0
    """The scale before training; 1: the encoder without it."""

    def apply(self, encoder: Encoder) -> None:
        """Wrap every block, in place."""
        for number, block in enumerate(encoder.blocks):
            encoder.blocks[number] = Scaled(block, self.start, encoder.widths[number])
