"""ResNet-18 as four blocks, its residual stages; torchvision's layers."""

from dataclasses import dataclass

from torchvision.models import resnet18

from ._residual import Residual


@dataclass(frozen=True)
class ResNet18(Residual):
    """Four residual stages."""

    constructor = staticmethod(resnet18)
    widths = (64, 128, 256, 512)
