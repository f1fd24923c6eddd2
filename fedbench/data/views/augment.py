"""Random views of a batch: crop and flip, colour jitter, grayscale, blur, solarize ([LW] Sec. 4.1).

Everything random is drawn from the generator that is passed in: the same generator state gives the same bits.
Shapes: B samples, C channels (1 or 3), H x W pixels, H = W.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedbench.config.schema import AugmentationConfig
from fedbench.data.views import colour, spatial

# At jitter_strength 1: the largest change of brightness, contrast, saturation and hue (BYOL, Appendix B)
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1
SIGMA = (0.1, 2.0)  # pixels; range of the blur's standard deviation
MAX_ASPECT = 4 / 3  # crops are at most this much wider than high, or higher than wide
MEAN, STD = 0.5, 0.25  # of the one normalisation, for every channel
MAX_LOCAL = 0.4  # largest small crop, share of the image's area (DINO, Sec. 3.1)
CROP_ATTEMPTS = 10  # draws until a crop fits, as torchvision's RandomResizedCrop


class Views(Protocol):
    """What turns a batch of images into random views: one or two, and small ones behind them."""

    def __call__(self, images_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Normalised float32 views (B, C, size, size) of uint8 images, on the images' device."""
        ...

    def shapes(self, batch_size: int, image_shape: tuple[int, int, int]) -> list[tuple[int, ...]]:
        """Of the views of a batch of images of shape (C, H, W)."""
        ...


def build_views(config: AugmentationConfig, image_size: int, num_views: int = 2) -> Views:
    """The views that `config.name` asks for, `image_size` pixels wide and high."""
    if config.name == "batched":
        return BatchedViews(config, image_size, num_views)
    from fedbench.data.views.lightly_views import LightlyViews  # imports for seconds

    return LightlyViews(config, image_size, num_views)


def normalize(images: Tensor) -> Tensor:
    """(x - MEAN) / STD for float images in [0, 1]: the one normalisation of training and evaluation."""
    return images.sub(MEAN).div_(STD)


@dataclass(frozen=True)
class BatchedViews:
    """Augments the whole batch at once on its device; the generator must be on the same device.

    No step waits for the device: an operation that is off for a sample runs with parameters that change
    nothing. Departures from the usual per-image transforms: jitter in the fixed order brightness, contrast,
    saturation, hue (there: random order); crops are resized without antialias; the blur is cut at
    `kernel_size` taps (PIL: not cut).
    """

    config: AugmentationConfig
    image_size: int
    num_views: int = 2

    def __call__(self, images_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Normalised float32 views (B, C, size, size) of square uint8 images (B, C, H, W).

        Small ones come last and are augmented as view 1 is.
        """
        images_BCHW = images_BCHW.float() / 255
        scale, small = (self.config.min_scale, 1.0), self.config.local_scale or (self.config.min_scale, MAX_LOCAL)
        views = [
            self._view(images_BCHW, view, scale, self.image_size, generator) for view in range(self.num_views)
        ]
        for _ in range(self.config.local_crops):
            views.append(self._view(images_BCHW, 0, small, self.local_size, generator))
        return tuple(views)

    @property
    def local_size(self) -> int:
        """Pixels of a small view."""
        return self.config.local_size or self.image_size // 2

    def shapes(self, batch_size: int, image_shape: tuple[int, int, int]) -> list[tuple[int, ...]]:
        """Of the views of a batch of images of shape (C, H, W)."""
        sizes = [self.image_size] * self.num_views + [self.local_size] * self.config.local_crops
        return [(batch_size, image_shape[0], size, size) for size in sizes]

    def _view(
        self, images_BCHW: Tensor, view: int, scale: tuple[float, float], size: int, generator: torch.Generator
    ) -> Tensor:
        config = self.config
        images_BCHW = self._crop(images_BCHW, scale, size, generator)
        if config.jitter > 0 and config.jitter_strength > 0:
            images_BCHW = self._jitter(images_BCHW, generator)
        if config.grayscale > 0:
            images_BCHW = colour.grayscale(images_BCHW, _chance(images_BCHW, config.grayscale, generator))
        if config.blur[view] > 0:
            images_BCHW = self._blur(images_BCHW, config.blur[view], generator)
        if config.solarize[view] > 0:
            images_BCHW = colour.solarize(images_BCHW, _chance(images_BCHW, config.solarize[view], generator))
        return normalize(images_BCHW)

    def _crop(
        self, images_BCHW: Tensor, scale: tuple[float, float], size: int, generator: torch.Generator
    ) -> Tensor:
        box_B4 = crop_boxes(images_BCHW, scale[0], generator, scale[1])
        flip_B = _chance(images_BCHW, self.config.flip, generator)
        return spatial.resized_crop(images_BCHW, box_B4, flip_B, size)

    def _jitter(self, images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        on_B = _chance(images_BCHW, self.config.jitter, generator)
        for change, strength in (
            (colour.brightness, BRIGHTNESS),
            (colour.contrast, CONTRAST),
            (colour.saturation, SATURATION),
        ):
            reach = self.config.jitter_strength * strength
            factor_B = _uniform(images_BCHW, max(0.0, 1 - reach), 1 + reach, generator)
            images_BCHW = change(images_BCHW, torch.where(on_B, factor_B, 1.0))
        reach = self.config.jitter_strength * HUE
        return colour.hue(images_BCHW, _uniform(images_BCHW, -reach, reach, generator) * on_B)

    def _blur(self, images_BCHW: Tensor, probability: float, generator: torch.Generator) -> Tensor:
        sigma_B = _uniform(images_BCHW, *SIGMA, generator)
        on_B = _chance(images_BCHW, probability, generator)
        return spatial.gaussian_blur(images_BCHW, sigma_B, on_B, kernel_size(self.image_size))


def kernel_size(image_size: int) -> int:
    """Taps of the blur: a tenth of the image, odd, at least 3 (SimCLR, Appendix A)."""
    return max(3, image_size // 10 | 1)


def crop_boxes(
    images_BCHW: Tensor, min_scale: float, generator: torch.Generator, max_scale: float = 1.0
) -> Tensor:
    """Top, left, height, width (B, 4) in whole pixels, distributed as torchvision's RandomResizedCrop.

    Area uniform in [min_scale, max_scale] of the image, log aspect uniform; of CROP_ATTEMPTS boxes the first that
    fits into the square image, else the whole image.
    """
    side = images_BCHW.shape[-1]
    draws_2BA = _rand((2, len(images_BCHW), CROP_ATTEMPTS), images_BCHW, generator)
    area_BA = (min_scale + (max_scale - min_scale) * draws_2BA[0]) * side**2
    aspect_BA = torch.exp((2 * draws_2BA[1] - 1) * math.log(MAX_ASPECT))
    # round(sqrt(x)): how many (k + 1/2)^2 are below x. The last bit of a root depends on the processor.
    halves = (torch.arange(side + 1, device=images_BCHW.device) + 0.5).square()
    squared_2BA = torch.stack((area_BA / aspect_BA, area_BA * aspect_BA))
    shape_2BA = torch.bucketize(squared_2BA, halves).to(squared_2BA.dtype)
    fits_BA = ((shape_2BA >= 1) & (shape_2BA <= side)).all(dim=0)
    first_B = fits_BA.int().argmax(dim=1)  # 0 when none fits
    shape_2B = shape_2BA.gather(2, first_B.expand(2, -1)[..., None])[..., 0]
    shape_2B = torch.where(fits_BA.any(dim=1), shape_2B, float(side))
    corner_2B = (_rand((2, len(images_BCHW)), images_BCHW, generator) * (side - shape_2B + 1)).floor_()
    return torch.cat((corner_2B, shape_2B)).T


def _uniform(images_BCHW: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    return _rand((len(images_BCHW),), images_BCHW, generator) * (high - low) + low


def _chance(images_BCHW: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    return _rand((len(images_BCHW),), images_BCHW, generator) < probability


def _rand(shape: tuple[int, ...], images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=images_BCHW.device)
