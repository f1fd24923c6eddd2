"""What an encoder plugin is. A whole one, in a file of its own, named by `encoder.name=./mlp.py`:

    @dataclass(frozen=True)
    class MLP(Architecture):
        layers: int = 3

        def build(self, images: ImageShape) -> Encoder:
            stem = nn.Sequential(nn.Flatten(), nn.Linear(images.channels * images.size**2, 64))
            blocks = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(self.layers)]
            return Encoder(stem, blocks, norm=nn.LayerNorm(64), pool=nn.Identity(), widths=[64] * self.layers)

Its fields are its configuration: `encoder={name: ./mlp.py, layers: 5}`. A file in `methods/encoders/` is
registered by its name; a package registers its own in the entry point group `fedbench.encoders`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from pydantic import ConfigDict

from fedbench.encoders.encoder import Encoder
from fedbench.encoders.twin import Twin
from fedbench.plugin_fields import FIELDS


class ImageShape(NamedTuple):
    """Of an encoder's input: (B, `channels`, `size`, `size`)."""

    channels: int
    size: int


@dataclass(frozen=True)
class Architecture(ABC):
    """An encoder before it is built: stem, blocks, norm, pooling."""

    __pydantic_config__: ClassVar[ConfigDict] = FIELDS

    def check(self, images: ImageShape) -> None:
        """Before anything is built. UserError: names the key, its value and what is allowed."""
        return

    @abstractmethod
    def build(self, images: ImageShape) -> Encoder:
        """The whole encoder, initialised from torch's global generator."""

    def twin(self, images: ImageShape) -> Twin | None:
        """The same model in another library, to which `export` renames the tensors; None: there is none."""
        return None
