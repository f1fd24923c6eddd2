"""COCO: the 118,287 images of train2017, without labels; for clients or the server to pre-train on."""

from fedbench.config.schema import DataConfig
from fedbench.data.folders import unlabelled
from fedbench.data.place import find
from fedbench.data.source import DataSource, Source

FOLDER = "train2017"


class Coco(DataSource):
    """`train2017/*.jpg`, resized once; its annotations of objects are no classes of images."""

    def load(self, data: DataConfig, image_size: int) -> Source:
        """There is nothing to score."""
        root = find(data, (".",), FOLDER, published="train2017.zip (cocodataset.org)")
        return Source(data.name, unlabelled(root / FOLDER, root), ())
