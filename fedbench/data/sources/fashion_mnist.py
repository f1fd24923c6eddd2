"""Fashion-MNIST: 70,000 grey images of 28 x 28 pixels in 10 classes (Xiao et al. 2017)."""

import gzip
import math
from pathlib import Path
from zlib import error as ZlibError

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.datasets import FashionMNIST

from fedbench.config.schema import DataConfig
from fedbench.data.images import ArrayImages
from fedbench.data.place import broken, find
from fedbench.data.source import DataSource, Part, Source

CLASSES = tuple(FashionMNIST.classes)
MAX_BYTES = 16 + 60_000 * 28 * 28  # of the largest of the files, unpacked


class FashionMnist(DataSource):
    """The four published idx.gz files."""

    downloads = True

    def load(self, data: DataConfig, image_size: int) -> Source:
        """Split as published."""
        folder = find(data, ("FashionMNIST/raw", "."), "t10k-labels-idx1-ubyte.gz", _fetch)
        train, test = _part(folder, "train"), _part(folder, "t10k")
        return Source(data.name, train, CLASSES, test)


def _fetch(root: Path) -> None:
    FashionMNIST(root, download=True)


def _part(folder: Path, name: str) -> Part:
    images = _read(folder / f"{name}-images-idx3-ubyte.gz", dimensions=3)
    file = folder / f"{name}-labels-idx1-ubyte.gz"
    labels = _read(file, dimensions=1).astype(np.int64)
    if len(labels) != len(images) or labels.max() >= len(CLASSES):
        raise broken(file, f"it must hold {len(images)} labels of 0 to {len(CLASSES) - 1}")
    return Part(ArrayImages(images[:, None]), torch.from_numpy(labels))


def _read(file: Path, dimensions: int) -> NDArray[np.uint8]:
    """An idx file of bytes: 0, 0, 8, the number of dimensions, each dimension in 4 bytes, the values."""
    try:
        with gzip.open(file) as opened:
            content = opened.read(MAX_BYTES + 1)  # the length before unpacking tells nothing
    except (OSError, EOFError, ZlibError) as error:
        raise broken(file, str(error)) from error
    if len(content) > MAX_BYTES:
        raise broken(file, f"unpacked it is larger than {MAX_BYTES:,} bytes")
    head, values = content[: 4 + 4 * dimensions], np.frombuffer(content[4 + 4 * dimensions :], np.uint8)
    shape = [int.from_bytes(head[start : start + 4]) for start in range(4, len(head), 4)]
    if head[:4] != bytes([0, 0, 8, dimensions]) or len(values) != math.prod(shape) or not len(values):
        raise broken(file, f"not an idx file of {dimensions} dimensions and {len(values)} values")
    return values.reshape(*shape)
