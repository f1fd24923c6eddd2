"""A numpy archive: `images` uint8 (N, H, W) or (N, H, W, C), `labels` (N,) integers; optionally a test part.

Without `labels` the images have none. The test part is `test_images` and `test_labels`. Labels may be any
integers: sorted, they become 0..K-1.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbench.config.schema import DataConfig
from fedbench.data import archive
from fedbench.data.place import root_of
from fedbench.data.source import UNLABELLED, DataSource, Part, Source
from fedbench.errors import UserError, shown


class Npz(DataSource):
    """Read without unpickling."""

    needs_path = True
    labels_optional = True

    def load(self, data: DataConfig, image_size: int) -> Source:
        """UserError: names the array that is missing or wrong."""
        path = root_of(data)
        if not data.labels or not _has_labels(path):
            pool = archive.read_images(path, "images")
            return Source(path.stem, Part(pool, torch.full((len(pool),), UNLABELLED)), ())
        images, labels = archive.read_pair(path, "")
        classes = np.unique(labels)
        train = Part(images, _indices(path, "labels", labels, classes))
        test = None
        if {"test_images", "test_labels"} & set(archive.names(path)):
            test_images, test_labels = archive.read_pair(path, "test_")
            test = Part(test_images, _indices(path, "test_labels", test_labels, classes))
        return Source(path.stem, train, tuple(str(name) for name in classes), test)


def _has_labels(path: Path) -> bool:
    """Where there are none, that is told, because a wrong name looks the same."""
    found = archive.names(path)
    if {"labels", "test_images", "test_labels"} & set(found):
        return True
    print(
        f"fedbench: data.path={path}: no array `labels`, only {shown(found)}: its images have none",
        file=sys.stderr,
    )
    return False


def _indices(path: Path, name: str, labels: NDArray[np.generic], classes: NDArray[np.generic]) -> Tensor:
    unknown = np.setdiff1d(labels, classes)
    if unknown.size:
        raise UserError(f"data.path={path}: `{name}` has {unknown[0]}; allowed: the values of `labels`")
    return torch.from_numpy(np.searchsorted(classes, labels).astype(np.int64))
