"""Mine: what it is in one line, and whose idea it is (arXiv number, section)."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, PositiveInt
from torch import nn

from fedbench.encoders import Architecture, Encoder, ImageShape


@dataclass(frozen=True)
class Mine(Architecture):
    """Layers on all pixels of an image at once."""

    width: Annotated[PositiveInt, Field(le=10_000)] = 64
    """Numbers that a layer makes of its input."""
    layers: Annotated[PositiveInt, Field(le=100)] = 3
    """Layers, each a block that can be frozen, trained and sent by itself."""

    def build(self, images: ImageShape) -> Encoder:
        """The whole encoder: what comes before the blocks, the blocks, a norm, and how a feature is made."""
        pixels = images.channels * images.size**2
        stem = nn.Sequential(nn.Flatten(), nn.Linear(pixels, self.width))
        blocks = [nn.Sequential(nn.Linear(self.width, self.width), nn.ReLU()) for _ in range(self.layers)]
        norm, pool = nn.LayerNorm(self.width), nn.Identity()
        return Encoder(stem, blocks, norm, pool, widths=[self.width] * self.layers)
