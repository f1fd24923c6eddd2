"""MobileNetV3-small (Howard et al. 2019, arXiv:1905.02244) as eleven blocks; torchvision's layers."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torchvision.models import mobilenet_v3_small
from torchvision.models.mobilenetv3 import InvertedResidual

from fedbench.encoders import Architecture, Encoder, ImageShape, Twin
from fedbench.encoders.pooling import mean_pixels

SMALL_IMAGE = 64  # pixels; up to here the stem keeps the resolution
STEM_WIDTH, FEATURES = 16, 576  # channels behind the stem, and behind the last convolution


@dataclass(frozen=True)
class MobileNetV3Small(Architecture):
    """A block is an inverted residual; the convolution behind them, which widens to 576 channels, is in the last.

    While shorter than full, a linear layer maps the output to that width, as for a ResNet.
    """

    stem: Literal["cifar", "imagenet"] | None = None
    """cifar: the first convolution keeps the resolution; imagenet: it halves it, as torchvision's does; null:
    cifar up to 64 pixels, imagenet above."""

    def build(self, images: ImageShape) -> Encoder:
        """torchvision's layers, with a first convolution for the images' channels and size."""
        first, *middle, last = mobilenet_v3_small(weights=None).features
        first[0] = nn.Conv2d(images.channels, STEM_WIDTH, **self._first_convolution(images))
        nn.init.kaiming_normal_(first[0].weight, mode="fan_out")
        widths = [block.out_channels for block in middle if isinstance(block, InvertedResidual)]
        blocks = [*middle[:-1], nn.Sequential(middle[-1], last)]
        return Encoder(first, blocks, nn.Identity(), mean_pixels, [*widths[:-1], FEATURES])

    def twin(self, images: ImageShape) -> Twin:
        """torchvision's model without its classifier, with our first convolution."""
        convolution = ", ".join(f"{key}={value}" for key, value in self._first_convolution(images).items())
        lines = [
            "from torch import nn",
            "from torchvision.models import mobilenet_v3_small",
            "model = mobilenet_v3_small()",
            f"model.features[0][0] = nn.Conv2d({images.channels}, {STEM_WIDTH}, {convolution})",
            "model.classifier = nn.Identity()",
        ]
        ends = {"blocks.10.0.": "features.11.", "blocks.10.1.": "features.12."}
        middle = {f"blocks.{index}.": f"features.{index + 1}." for index in range(10)}
        return Twin("torchvision", {}, "\n".join(lines), {"stem.": "features.0.", **ends, **middle})

    def _first_convolution(self, images: ImageShape) -> dict[str, Any]:
        small = images.size <= SMALL_IMAGE if self.stem is None else self.stem == "cifar"
        return {"kernel_size": 3, "stride": 1 if small else 2, "padding": 1, "bias": False}
