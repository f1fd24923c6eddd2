"""scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels, shipped with the package."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from fedbench.data.sources import Part, Source


def load(path: str | None, image_size: int, in_channels: int) -> Source:
    """One channel, values 0..16 scaled to 0..255; the arguments have no meaning here."""
    digits = load_digits()
    images_NHW = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    part = Part(torch.from_numpy(images_NHW)[:, None], torch.from_numpy(digits.target.astype(np.int64)))
    return Source("digits", part, None, tuple(str(name) for name in digits.target_names))
