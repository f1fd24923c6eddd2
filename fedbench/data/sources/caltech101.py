"""Caltech-101: 8,677 images of about 300 x 200 pixels in 101 classes (Li et al. 2004), split 80/20."""

from pathlib import Path

from torchvision.datasets import Caltech101 as Published

from fedbench.config.schema import DataConfig
from fedbench.data.folders import class_folders, labelled
from fedbench.data.place import find
from fedbench.data.source import DataSource, Source

FOLDER = "101_ObjectCategories"
BACKGROUND = "BACKGROUND_Google"  # no class: what the authors compare detection with


class Caltech101(DataSource):
    """Grey images among the coloured are converted. No split is published: ours is stratified by class."""

    downloads = True

    def load(self, data: DataConfig, image_size: int) -> Source:
        """One folder per class, the background left out."""
        folder = find(data, ("caltech101", "."), FOLDER, _fetch) / FOLDER
        classes = tuple(name for name in class_folders(folder) if name != BACKGROUND)
        return Source(data.name, labelled(folder, classes, folder), classes)


def _fetch(root: Path) -> None:
    Published(root, download=True)
