"""scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels, shipped with the package."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from fedbench.config.schema import DataConfig
from fedbench.data.source import DataSource, Part, Source
from fedbench.errors import UserError


class Digits(DataSource):
    """One channel, values 0..16 scaled to 0..255; ten classes."""

    def check(self, data: DataConfig) -> None:
        """There is nothing to name."""
        super().check(data)
        if data.path:
            raise UserError(
                f"data.path={data.path}; allowed with data.name=digits: none, it is shipped with scikit-learn"
            )

    def load(self, data: DataConfig, image_size: int) -> Source:
        """All of them, without a split."""
        digits = load_digits()
        images_NHW = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        part = Part(torch.from_numpy(images_NHW)[:, None], torch.from_numpy(digits.target.astype(np.int64)))
        return Source("digits", part, tuple(str(name) for name in digits.target_names))
