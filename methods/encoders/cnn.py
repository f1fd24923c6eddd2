"""A small convolutional network, as papers on edge devices train it: four 3x3 convolutions of one width."""

from dataclasses import dataclass

from torch import nn

from fedbench.config.schema import Blocks, Dimensions
from fedbench.encoders import Architecture, Encoder, ImageShape
from fedbench.encoders.pooling import mean_pixels


@dataclass(frozen=True)
class CNN(Architecture):
    """A block is convolution, BatchNorm, ReLU and 2x2 max-pooling (Vinyals et al. 2016, arXiv:1606.04080).

    Nothing is pooled where one pixel is left. The network has no stem.
    """

    width: Dimensions = 64
    """Channels of every convolution."""
    depth: Blocks = 4
    """Convolutions, each a block."""

    def build(self, images: ImageShape) -> Encoder:
        """With torch's own initial values."""
        blocks = list[nn.Module]()
        channels, size = images.channels, images.size
        for _ in range(self.depth):
            convolution = nn.Conv2d(channels, self.width, kernel_size=3, padding=1, bias=False)
            pool = nn.MaxPool2d(2) if size > 1 else nn.Identity()
            blocks.append(nn.Sequential(convolution, nn.BatchNorm2d(self.width), nn.ReLU(), pool))
            channels, size = self.width, max(size // 2, 1)
        return Encoder(nn.Identity(), blocks, nn.Identity(), mean_pixels, [self.width] * self.depth)
