"""MedMNIST v2 (Yang et al. 2023): an npz file per set and size; the package `medmnist` knows where."""

from math import log
from pathlib import Path
from typing import Any, ClassVar

import torch
from torchvision.datasets.utils import download_url

from fedbench.config.schema import DataConfig
from fedbench.data import archive
from fedbench.data.place import find
from fedbench.data.source import DataSource, Part, Source
from fedbench.errors import UserError


class MedMnist(DataSource):
    """What its sets have in common; `flag` is the set's name there."""

    downloads = True
    sizes = (28, 64, 128, 224)
    flag: ClassVar[str]

    def load(self, data: DataConfig, image_size: int) -> Source:
        """Clients: the training part; a probe: validation; score: test, as [LW] has it.

        The published size is `data.size`, by default the nearest to `image_size` in proportion.
        """
        info = _info(self.flag)
        size = data.size or min(self.sizes, key=lambda size: abs(log(size / image_size)))
        suffix = "" if size == 28 else f"_{size}"
        name = f"{self.flag}{suffix}.npz"

        def fetch(root: Path) -> None:
            download_url(info[f"url{suffix}"], str(root), filename=name, md5=info[f"MD5{suffix}"])

        file = find(data, (".",), name, fetch) / name
        classes = tuple(info["label"].values())
        train, validation, test = (_part(file, part, len(classes)) for part in ("train", "val", "test"))
        return Source(data.name, train, classes, test, downstream=validation)


def _part(file: Path, name: str, num_classes: int) -> Part:
    images, labels = archive.read_pair(file, f"{name}_", label_shape="(N, 1)")
    if labels.max() >= num_classes:
        raise UserError(f"data.path={file}: `{name}_labels` has {labels.max()}; allowed: 0 to {num_classes - 1}")
    return Part(images, torch.from_numpy(labels.astype("int64")))


def _info(flag: str) -> dict[str, Any]:
    try:
        from medmnist import INFO  # here, because it is optional
    except ImportError as error:
        raise UserError(
            f"data.name={flag} needs the package medmnist ({error}); install it: pip install 'fedbench[medmnist]'"
        ) from error
    info: dict[str, Any] = INFO[flag]
    return info
