"""What a source of images is. A whole one, in a file of its own, named by `data.name=./noise.py`:

    class Noise(DataSource):
        def load(self, data: DataConfig, image_size: int) -> Source:
            images = torch.randint(0, 256, (100, 1, 8, 8), dtype=torch.uint8)
            return Source("noise", Part(images, torch.arange(100) % 2), ("even", "odd"))

A file in `fedbench/data/sources/` is registered by its name; a package registers its own in the entry point group
`fedbench.datasets`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedbench.config.schema import DataConfig
from fedbench.data.images import Images
from fedbench.errors import UserError

UNLABELLED = -1  # the label of an image whose class is not known


@dataclass(frozen=True, eq=False)
class Part:
    """Images, and their labels int64 (N,) in 0..K-1 or `UNLABELLED`.

    Attributes:
        images: uint8 (N, C, H, W), C = 1 or 3, of a set that is small; or `Images`, decoded once, to a file.
        names: what a file of groups calls each image; None: its number, from 0.
    """

    images: Tensor | Images
    labels: Tensor
    names: Sequence[str] | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """What a source delivers, split as it was published.

    Attributes:
        train: the clients' images.
        class_names: K names; none for a set without labels.
        test: what is scored, all labelled; None: a fixed fifth of the labelled images of `train`.
        downstream: what a probe learns from, all labelled; None: the labelled images of `train`.
    """

    name: str
    train: Part
    class_names: tuple[str, ...]
    test: Part | None = None
    downstream: Part | None = None


class DataSource(ABC):
    """A data set, or a form of the user's own files.

    Attributes:
        needs_path: whether `data.path` must be given.
        downloads: whether it can fetch itself, which it does with `data.download=true` only.
        labels_optional: whether `data.labels=false` makes a set without labels of it.
        sizes: the sizes in pixels in which it is published, for `data.size`; none: in one.
    """

    needs_path: ClassVar[bool] = False
    downloads: ClassVar[bool] = False
    labels_optional: ClassVar[bool] = False
    sizes: ClassVar[tuple[int, ...]] = ()

    @abstractmethod
    def load(self, data: DataConfig, image_size: int) -> Source:
        """What `data` names; `image_size` in pixels is what the run will use, in case there are several sizes.

        UserError: names the file or key that is missing or wrong.
        """

    def check(self, data: DataConfig) -> None:
        """Before anything is read. UserError: names the key, its value and what is allowed."""
        if self.needs_path and not data.path:
            raise UserError(f"data.path is missing; data.name={data.name} needs the path of its files")
        if data.download and not self.downloads:
            raise UserError(f"data.download=true; allowed with data.name={data.name}: false, there is no download")
        if not data.labels and not self.labels_optional:
            raise UserError(f"data.labels=false; allowed with data.name={data.name}: true")
        if data.size is not None and data.size not in self.sizes:
            allowed = ", ".join(map(str, self.sizes)) or "none, it is published in one size"
            raise UserError(f"data.size={data.size}; allowed with data.name={data.name}: {allowed}")
