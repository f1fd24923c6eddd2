"""torchvision's ResNets as four blocks, their residual stages; the plugins are beside this file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn
from torchvision.models import ResNet

from fedbench.encoders import Architecture, Encoder, ImageShape, Twin
from fedbench.encoders.pooling import mean_pixels

STEM_WIDTH = 64  # channels
SMALL_IMAGE = 64  # pixels; up to here the stem keeps the resolution, as is usual for CIFAR


@dataclass(frozen=True)
class Residual(Architecture):
    """A ResNet whose blocks are its residual stages.

    While shorter than full, a linear layer maps the output to the last stage's width ([LW]: a temporary layer,
    thrown away at the end of the stage). There is no final norm: the last residual stage ends in its own.
    """

    constructor: ClassVar[Callable[..., ResNet]]
    widths: ClassVar[Sequence[int]]  # channels behind each residual stage

    depth: Literal[4] = 4
    """Its residual stages."""
    stem: Literal["cifar", "imagenet"] | None = None
    """cifar: 3x3 at full resolution; imagenet: torchvision's own, 7x7 with stride 2 and max-pooling, which is the
    paper's even at 32 pixels; null: cifar up to 64 pixels, imagenet above."""

    def build(self, images: ImageShape) -> Encoder:
        """torchvision's layers, with a first convolution for the images' channels and size."""
        net = type(self).constructor(weights=None)
        conv = nn.Conv2d(images.channels, STEM_WIDTH, **self._first_convolution(images))
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        pool = nn.Identity() if self._is_small(images) else net.maxpool
        stem = nn.Sequential(conv, net.bn1, net.relu, pool)
        blocks = [net.layer1, net.layer2, net.layer3, net.layer4]
        return Encoder(stem, blocks, nn.Identity(), mean_pixels, self.widths)

    def twin(self, images: ImageShape) -> Twin:
        """torchvision's model without its classifier, with our first convolution and pooling."""
        name = type(self).constructor.__name__
        convolution = ", ".join(f"{key}={value}" for key, value in self._first_convolution(images).items())
        lines = [
            "from torch import nn",
            f"from torchvision.models import {name}",
            f"model = {name}()",
            f"model.conv1 = nn.Conv2d({images.channels}, {STEM_WIDTH}, {convolution})",
            *(["model.maxpool = nn.Identity()"] if self._is_small(images) else []),
            "model.fc = nn.Identity()",
        ]
        stages = {f"blocks.{index}.": f"layer{index + 1}." for index in range(len(self.widths))}
        return Twin("torchvision", {}, "\n".join(lines), {"stem.0.": "conv1.", "stem.1.": "bn1.", **stages})

    def _is_small(self, images: ImageShape) -> bool:
        return images.size <= SMALL_IMAGE if self.stem is None else self.stem == "cifar"

    def _first_convolution(self, images: ImageShape) -> dict[str, Any]:
        kernel, stride = (3, 1) if self._is_small(images) else (7, 2)
        return {"kernel_size": kernel, "stride": stride, "padding": kernel // 2, "bias": False}
