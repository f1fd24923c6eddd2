"""An edit of the server's model: a function that changes some of its tensors in place."""

from collections.abc import Callable, Mapping, Set

import torch
from torch import Tensor

from fedbench.data import normalize
from fedbench.encoders.tensor_groups import group_of
from fedbench.errors import UserError
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


def check_edit(before: Mapping[str, Tensor], after: Mapping[str, Tensor], groups: Set[str]) -> None:
    """Refuse an edit that changed a tensor of another group than `groups`, by a `UserError`."""
    changed = {group_of(key) for key, value in after.items() if not torch.equal(value, before[key])}
    if odd := changed - groups:
        raise UserError(f"edit changed {min(odd)!r}; allowed: the groups that it names, {sorted(groups)}")
