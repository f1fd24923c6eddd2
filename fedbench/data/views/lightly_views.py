"""lightly's per-image PIL transforms with our settings: slow, and the cross-check of the batched ones."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from lightly.transforms.byol_transform import BYOLView1Transform
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from fedbench.config.schema import AugmentationConfig
from fedbench.data.views.augment import BRIGHTNESS, CONTRAST, HUE, SATURATION, SIGMA, normalize


class LightlyViews:
    """lightly's BYOL transforms, one per view, applied image by image on the CPU."""

    def __init__(self, config: AugmentationConfig, image_size: int, num_views: int = 2) -> None:
        self._image_size = image_size
        self._transforms = [_transform(config, image_size, view) for view in range(num_views)]

    def shapes(self, batch_size: int, image_shape: tuple[int, int, int]) -> list[tuple[int, ...]]:
        """Of the views of a batch of images of shape (C, H, W)."""
        return [(batch_size, image_shape[0], self._image_size, self._image_size) for _ in self._transforms]

    def __call__(self, images_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Normalised float32 views (B, C, size, size) of uint8 images, on the images' device."""
        pictures = [to_pil_image(image_CHW) for image_CHW in images_BCHW.cpu()]
        with _seeded(generator):
            views = [torch.stack([transform(picture) for picture in pictures]) for transform in self._transforms]
        return tuple(normalize(view).to(images_BCHW.device) for view in views)


def _transform(config: AugmentationConfig, image_size: int, view: int) -> BYOLView1Transform:
    return BYOLView1Transform(
        input_size=image_size,
        cj_prob=config.jitter,
        cj_strength=config.jitter_strength,
        cj_bright=BRIGHTNESS,
        cj_contrast=CONTRAST,
        cj_sat=SATURATION,
        cj_hue=HUE,
        min_scale=config.min_scale,
        random_gray_scale=config.grayscale,
        gaussian_blur=config.blur[view],
        solarization_prob=config.solarize[view],
        sigmas=SIGMA,
        hf_prob=config.flip,
        normalize=None,
    )


@contextmanager
def _seeded(generator: torch.Generator) -> Iterator[None]:
    """Seed the global generators that lightly draws from; put their state back afterwards."""
    seed = int(torch.randint(2**32, (), generator=generator, device=generator.device))
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)
