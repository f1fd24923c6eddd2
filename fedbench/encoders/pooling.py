"""What makes one feature of an image: the mean of its tokens or pixels."""

from torch import Tensor


def mean_tokens(tokens_BTD: Tensor) -> Tensor:
    """(B, T, D) -> (B, D)."""
    return tokens_BTD.mean(dim=1)


def mean_pixels(maps_BCHW: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C)."""
    return maps_BCHW.mean(dim=(2, 3))
