"""ResNet-50 as four blocks, its residual stages; torchvision's layers."""

from dataclasses import dataclass

from torchvision.models import resnet50

from ._residual import Residual


@dataclass(frozen=True)
class ResNet50(Residual):
    """Four residual stages."""

    constructor = staticmethod(resnet50)
    widths = (256, 512, 1024, 2048)
