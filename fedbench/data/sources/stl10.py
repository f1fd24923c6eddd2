"""STL-10: 100,000 unlabelled images of 96 x 96 pixels, 5,000 labelled to learn from, 8,000 to score."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.datasets import STL10
from torchvision.datasets.utils import download_and_extract_archive

from fedbench.config.schema import DataConfig
from fedbench.data.images import ArrayImages
from fedbench.data.place import broken, find, read_lines
from fedbench.data.source import UNLABELLED, DataSource, Part, Source

PIXELS = 3 * 96 * 96


class Stl10(DataSource):
    """Its binary version, mapped into memory: pixels column by column, labels from 1 (Coates et al. 2011)."""

    downloads = True

    def load(self, data: DataConfig, image_size: int) -> Source:
        """Clients: the unlabelled images; a probe: the training images; score: the test images."""
        folder = find(data, (STL10.base_folder, "."), "unlabeled_X.bin", _fetch)
        classes = tuple(read_lines(folder / STL10.class_names_file))
        images = _images(folder / "unlabeled_X.bin")
        train = Part(ArrayImages(images), torch.full((len(images),), UNLABELLED))
        probe, test = (_part(folder, name, len(classes)) for name in ("train", "test"))
        return Source(data.name, train, classes, test, downstream=probe)


def _fetch(root: Path) -> None:
    download_and_extract_archive(STL10.url, str(root), md5=STL10.tgz_md5)


def _part(folder: Path, name: str, num_classes: int) -> Part:
    images, file = _images(folder / f"{name}_X.bin"), folder / f"{name}_y.bin"
    labels = _read(file).astype(np.int64) - 1
    if len(labels) != len(images) or labels.min() < 0 or labels.max() >= num_classes:
        raise broken(file, f"it must hold {len(images)} labels of 1 to {num_classes}")
    return Part(ArrayImages(images), torch.from_numpy(labels))


def _images(file: Path) -> NDArray[np.uint8]:
    values = _read(file)
    if len(values) % PIXELS:
        raise broken(file, f"{len(values)} bytes are not images of {PIXELS}")
    return values.reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)


def _read(file: Path) -> NDArray[np.uint8]:
    try:
        return np.memmap(file, np.uint8, mode="r")
    except (OSError, ValueError) as error:  # absent, or empty
        raise broken(file, str(error)) from error
