"""CIFAR in its binary version, which needs no pickle: records of label bytes and 3 x 32 x 32 pixels."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.datasets.utils import download_and_extract_archive

from fedbench.config.schema import DataConfig
from fedbench.data.images import ArrayImages
from fedbench.data.place import broken, check_size, find, read_lines
from fedbench.data.source import DataSource, Part, Source

PIXELS = 3 * 32 * 32
MAX_RECORDS = 50_000  # of a file, as CIFAR-100's has


class Cifar(DataSource):
    """What both sets have in common: the last of the `label_bytes` of a record is its class."""

    downloads = True
    url: ClassVar[str]
    md5: ClassVar[str]  # of the archive, as the authors' page gives it
    folder: ClassVar[str]
    train_files: ClassVar[Sequence[str]]
    test_file: ClassVar[str]
    names_file: ClassVar[str]
    label_bytes: ClassVar[int]

    def load(self, data: DataConfig, image_size: int) -> Source:
        """Split as published."""
        folder = find(data, (self.folder, "."), self.test_file, self._fetch)
        classes = tuple(read_lines(folder / self.names_file))
        train = self._part([folder / name for name in self.train_files], len(classes))
        test = self._part([folder / self.test_file], len(classes))
        return Source(data.name, train, classes, test)

    def _fetch(self, root: Path) -> None:
        download_and_extract_archive(self.url, str(root), md5=self.md5)

    def _part(self, files: Sequence[Path], num_classes: int) -> Part:
        records = np.concatenate([self._records(file, num_classes) for file in files])
        labels = records[:, self.label_bytes - 1].astype(np.int64)
        return Part(ArrayImages(records[:, self.label_bytes :].reshape(-1, 3, 32, 32)), torch.from_numpy(labels))

    def _records(self, file: Path, num_classes: int) -> NDArray[np.uint8]:
        length = self.label_bytes + PIXELS
        try:
            check_size(file, MAX_RECORDS * length)
            values = np.fromfile(file, np.uint8)
        except OSError as error:
            raise broken(file, str(error)) from error
        if not len(values) or len(values) % length:
            raise broken(file, f"{len(values)} bytes are not records of {length}")
        records = values.reshape(-1, length)
        highest = records[:, self.label_bytes - 1].max()
        if highest >= num_classes:
            raise broken(file, f"label {highest} of {num_classes} classes")
        return records
