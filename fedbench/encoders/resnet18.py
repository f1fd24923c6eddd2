"""ResNet-18 as four blocks, its residual stages; torchvision's layers."""

from typing import Any

from torch import Tensor, nn
from torchvision.models import ResNet, resnet18

from fedbench.config.schema import EncoderConfig
from fedbench.encoders.encoder import Encoder
from fedbench.encoders.twin import Twin

WIDTHS = (64, 128, 256, 512)  # channels after each residual stage
SMALL_IMAGE = 64  # pixels; up to here the stem keeps the resolution, as is usual for CIFAR


def mean_pixels(maps_BCHW: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C)."""
    return maps_BCHW.mean(dim=(2, 3))


def build(config: EncoderConfig, depth: int) -> Encoder:
    """The first `depth` residual stages.

    While shorter than full, a linear layer maps the output to 512 dimensions ([LW]: a temporary layer,
    thrown away at the end of the stage). There is no final norm: the last residual stage ends in its own.
    """
    net = resnet18(weights=None)
    stem = _stem(net, config)
    blocks: list[nn.Module] = [net.layer1, net.layer2, net.layer3, net.layer4][:depth]
    reshape = nn.Identity() if depth == len(WIDTHS) else nn.Linear(WIDTHS[depth - 1], WIDTHS[-1])
    return Encoder(stem, blocks, nn.Identity(), mean_pixels, reshape, WIDTHS[-1])


def _stem(net: ResNet, config: EncoderConfig) -> nn.Module:
    conv = nn.Conv2d(config.in_channels, WIDTHS[0], **_first_convolution(config))
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    pool = nn.Identity() if _is_small(config) else net.maxpool
    return nn.Sequential(conv, net.bn1, net.relu, pool)


def _is_small(config: EncoderConfig) -> bool:
    return config.image_size <= SMALL_IMAGE if config.stem is None else config.stem == "cifar"


def _first_convolution(config: EncoderConfig) -> dict[str, Any]:
    kernel, stride = (3, 1) if _is_small(config) else (7, 2)
    return {"kernel_size": kernel, "stride": stride, "padding": kernel // 2, "bias": False}


def twin(config: EncoderConfig) -> Twin:
    """torchvision's ResNet-18 without its classifier, with our first convolution and pooling."""
    convolution = ", ".join(f"{key}={value}" for key, value in _first_convolution(config).items())
    lines = [
        "from torch import nn",
        "from torchvision.models import resnet18",
        "model = resnet18()",
        f"model.conv1 = nn.Conv2d({config.in_channels}, {WIDTHS[0]}, {convolution})",
        *(["model.maxpool = nn.Identity()"] if _is_small(config) else []),
        "model.fc = nn.Identity()",
    ]
    stages = {f"blocks.{index}.": f"layer{index + 1}." for index in range(len(WIDTHS))}
    return Twin("torchvision", {}, "\n".join(lines), {"stem.0.": "conv1.", "stem.1.": "bn1.", **stages})
