"""Tiny ImageNet: 110,000 images of 64 x 64 pixels in 200 classes, scored on its validation part."""

from pathlib import Path

from fedbench.config.schema import DataConfig
from fedbench.data.folders import class_folders, labelled, listed
from fedbench.data.place import broken, find, read_lines
from fedbench.data.source import DataSource, Part, Source
from fedbench.errors import shown


class TinyImageNet(DataSource):
    """`train/CLASS/images/*.JPEG`, and `val/images` with `val/val_annotations.txt`; `test` has no labels."""

    def load(self, data: DataConfig, image_size: int) -> Source:
        """Split as published."""
        folders = ("tiny-imagenet-200", ".")
        root = find(data, folders, "val/val_annotations.txt", published="tiny-imagenet-200.zip (Stanford CS231n)")
        classes = class_folders(root / "train")
        train = labelled(root / "train", classes, root, below="images")
        return Source(data.name, train, classes, _validation(root, classes))


def _validation(root: Path, classes: tuple[str, ...]) -> Part:
    """The file names an image and its class in each line, then a box, divided by tabs."""
    annotations = root / "val" / "val_annotations.txt"
    rows = [line.split("\t") for line in read_lines(annotations)]
    number = {name: label for label, name in enumerate(classes)}
    for row in rows:
        if len(row) < 2 or row[1] not in number:
            raise broken(annotations, f"line {shown(' '.join(row))} names no class of the training part")
        if row[0] in ("", "..") or Path(row[0]).name != row[0]:
            raise broken(annotations, f"line {shown(' '.join(row))} names no file of val/images")
    files = [annotations.parent / "images" / row[0] for row in rows]
    return listed(files, [number[row[1]] for row in rows], root)
