"""Crop, flip and blur of a batch, each with parameters per sample.

Shapes: B samples, C channels, H x W pixels; O is the side of the output, T the taps of a kernel.
Images are float in [0, 1]. Pure functions, on the images' device, without waiting for it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def resized_crop(images_BCHW: Tensor, box_B4: Tensor, flip_B: Tensor, size: int) -> Tensor:
    """Cut a box out of each image, resize it to `size` x `size` (bilinear, no antialias), flip it or not.

    `box_B4` holds top, left, height, width in pixels; `flip_B` is bool. Crop, resize and horizontal flip are
    one lookup: (B, C, O, O). Values at the border of the box repeat, nothing is read from outside it.
    """
    top, left, height, width = box_B4.float()[:, :, None].unbind(dim=1)
    centres_O = torch.arange(size, device=images_BCHW.device) + 0.5
    columns_BO = torch.where(flip_B[:, None], size - centres_O, centres_O)
    y_BO = _inside(centres_O / size * height, height) + top
    x_BO = _inside(columns_BO / size * width, width) + left
    grid_BOO2 = _grid(y_BO, x_BO, images_BCHW.shape[2], images_BCHW.shape[3])
    return F.grid_sample(images_BCHW, grid_BOO2, padding_mode="border", align_corners=False)


def gaussian_blur(images_BCHW: Tensor, sigma_B: Tensor, on_B: Tensor, kernel_size: int) -> Tensor:
    """Gaussian of `sigma_B` pixels cut at `kernel_size` (odd) taps, borders reflected, where `on_B` holds.

    Two passes of shifted sums rather than a grouped convolution: faster on the CPU for the few taps of
    small images, and float32 under autocast.
    """
    kernel_BT = _kernel(sigma_B, on_B, kernel_size)
    margin = kernel_size // 2
    padded_BCHW = F.pad(images_BCHW, (margin,) * 4, mode="reflect")
    return _filter(_filter(padded_BCHW, kernel_BT, dim=2), kernel_BT, dim=3)


def _inside(position_BO: Tensor, length_B1: Tensor) -> Tensor:
    """From distance along the box to pixel index in the box, kept between its first and last pixel."""
    return torch.minimum((position_BO - 0.5).clamp_min_(0), length_B1 - 1)


def _grid(y_BO: Tensor, x_BO: Tensor, height: int, width: int) -> Tensor:
    """Pixel indices as grid_sample wants them: (B, O, O, 2), x first, the image spanning -1..1."""
    grid_BOO2 = y_BO.new_empty(*y_BO.shape, x_BO.shape[1], 2)
    grid_BOO2[..., 0] = ((2 * x_BO + 1) / width - 1)[:, None, :]
    grid_BOO2[..., 1] = ((2 * y_BO + 1) / height - 1)[:, :, None]
    return grid_BOO2


def _kernel(sigma_B: Tensor, on_B: Tensor, kernel_size: int) -> Tensor:
    """exp(-t^2 / (2 sigma^2)) over t = -(T-1)/2 .. (T-1)/2 with sum 1; where off, 1 at t = 0: (B, T)."""
    taps_T = torch.arange(kernel_size, device=sigma_B.device) - kernel_size // 2
    gaussian_BT = torch.softmax(-0.5 * (taps_T / sigma_B[:, None]) ** 2, dim=1)
    return torch.where(on_B[:, None], gaussian_BT, (taps_T == 0).to(gaussian_BT.dtype))


def _filter(images_BCHW: Tensor, kernel_BT: Tensor, dim: int) -> Tensor:
    """Weighted sum of the shifts along `dim`, which shrinks by T - 1."""
    taps_BT111 = kernel_BT[:, :, None, None, None]
    length = images_BCHW.shape[dim] - kernel_BT.shape[1] + 1
    total = images_BCHW.narrow(dim, 0, length) * taps_BT111[:, 0]
    for tap in range(1, kernel_BT.shape[1]):
        total.addcmul_(images_BCHW.narrow(dim, tap, length), taps_BT111[:, tap])
    return total
