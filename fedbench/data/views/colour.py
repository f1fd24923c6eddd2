"""Colour operations on a batch, each with one parameter per sample, as torchvision defines them per image.

Shapes: B samples, C channels (1 or 3), H x W pixels. Images are float in [0, 1]; a parameter `x_B` is (B,).
Each function is pure and runs on the images' device without waiting for it. Parameters that change nothing
(factor 1, shift 0, False) stand for "not applied to this sample". One channel has no colour: saturation,
hue and grayscale return it as it is.
"""

import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, the digits torchvision uses


def brightness(images_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Scale towards black: x <- factor * x."""
    return (images_BCHW * _per_sample(factor_B)).clamp_(0, 1)


def contrast(images_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Blend with the image's mean luma: x <- factor * x + (1 - factor) * mean."""
    mean_B111 = luma(images_BCHW.mean(dim=(2, 3), keepdim=True))
    factor_B111 = _per_sample(factor_B)
    return (images_BCHW * factor_B111).add_((1 - factor_B111) * mean_B111).clamp_(0, 1)


def saturation(images_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Blend with the pixel's luma: x <- factor * x + (1 - factor) * luma."""
    if images_BCHW.shape[1] == 1:
        return images_BCHW
    factor_B111 = _per_sample(factor_B)
    return (images_BCHW * factor_B111).add_((1 - factor_B111) * luma(images_BCHW)).clamp_(0, 1)


def hue(images_BCHW: Tensor, shift_B: Tensor) -> Tensor:
    """Turn the hue by `shift_B` of a full circle; HSV saturation and value stay.

    From value v, range d and hue t (in turns): channel = v - d * clamp(2 - 6 |t_n - 1/3|, 0, 1), where
    t_n = t + n/6 modulo 1 and n = 5, 3, 1 for red, green, blue. This is HSV to RGB without its six cases,
    because a selection costs the CPU ten times a multiplication.
    """
    if images_BCHW.shape[1] == 1:
        return images_BCHW
    hue_BHW, value_BHW, range_BHW = _hue_value_range(images_BCHW)
    hue_BHW += (shift_B - shift_B.floor() + 1)[:, None, None]  # positive, as frac needs it
    channels = [_from_hue((hue_BHW + n / 6).frac_(), value_BHW, range_BHW) for n in (5, 3, 1)]
    return torch.stack(channels, dim=1).clamp_(0, 1)


def grayscale(images_BCHW: Tensor, on_B: Tensor) -> Tensor:
    """Luma in every channel of the samples where the bool `on_B` holds."""
    if images_BCHW.shape[1] == 1:
        return images_BCHW
    return torch.lerp(images_BCHW, luma(images_BCHW), _per_sample(on_B.to(images_BCHW.dtype)))


def solarize(images_BCHW: Tensor, on_B: Tensor) -> Tensor:
    """Invert the values of 0.5 and more, x <- min(x, 1 - x), in the samples where the bool `on_B` holds."""
    solarized_BCHW = torch.minimum(images_BCHW, 1 - images_BCHW)
    return torch.lerp(images_BCHW, solarized_BCHW, _per_sample(on_B.to(images_BCHW.dtype)))


def luma(images_BCHW: Tensor) -> Tensor:
    """Weighted mean of the channels, (B, 1, H, W); one channel is its own luma."""
    if images_BCHW.shape[1] == 1:
        return images_BCHW
    red, green, blue = images_BCHW.unbind(dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])[:, None]


def _hue_value_range(images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in turns in [-1/2, 1/2] (red 0, green 1/3, blue -1/3), HSV value, and value minus smallest channel.

    |hue| = (2 + (low - red + min(high - red, 0)) / range) / 6 with low, high = sorted(green, blue), and the
    sign of green - blue: red largest gives (high - low) / range sixths, else 2 - (red - low) / range.
    """
    red, green, blue = images_BCHW.unbind(dim=1)
    high_BHW, low_BHW = torch.maximum(green, blue), torch.minimum(green, blue)
    value_BHW = torch.maximum(high_BHW, red)
    range_BHW = value_BHW - torch.minimum(low_BHW, red)
    low_BHW.sub_(red).add_(high_BHW.sub_(red).clamp_max_(0))
    low_BHW.div_(range_BHW.clamp_min(torch.finfo(range_BHW.dtype).tiny))  # a grey pixel has any hue
    return low_BHW.add_(2).div_(6).copysign_(green - blue), value_BHW, range_BHW


def _from_hue(turns_BHW: Tensor, value_BHW: Tensor, range_BHW: Tensor) -> Tensor:
    """One channel, overwriting its turned hue."""
    share_BHW = turns_BHW.sub_(1 / 3).abs_().mul_(-6).add_(2).clamp_(0, 1)
    return torch.addcmul(value_BHW, share_BHW, range_BHW, value=-1)


def _per_sample(parameter_B: Tensor) -> Tensor:
    return parameter_B[:, None, None, None]
