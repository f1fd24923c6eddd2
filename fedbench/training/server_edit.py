"""An edit of the server's model: a function that changes some of its tensors in place."""

from collections.abc import Callable

import torch
from torch import Tensor

from fedbench.data import normalize
from fedbench.ssl import SSLMethod

Edit = Callable[[SSLMethod, Tensor], None]


@torch.no_grad()
def apply_edit(model: SSLMethod, function: Edit, images: Tensor) -> None:
    """Call `function(model, images)`, the model in eval mode and the images as encoders take them.

    Args:
        images: uint8 (N, C, H, W), on the model's device.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    function(model, normalize(images.float() / 255))
    for module, mode in modes.items():
        module.training = mode
