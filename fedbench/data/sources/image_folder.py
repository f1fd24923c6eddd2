"""Folders of image files: PATH/CLASS/*.png, or PATH/train/CLASS/*.png and PATH/test (or val); or no classes."""

import sys
from pathlib import Path

from fedbench.config.schema import DataConfig
from fedbench.data.folders import class_folders, folders, images_in, labelled, unlabelled
from fedbench.data.place import existing_folder
from fedbench.data.source import DataSource, Part, Source
from fedbench.errors import UserError

NO_CLASS = ("unknown", "unlabelled", "unlabeled")  # a folder of this name is no class: its images have no label


class ImageFolder(DataSource):
    """Classes are the sorted folder names of the training part.

    Images have no label where there are no folders, where the folder's name says so, and with `data.labels=false`,
    which takes all images of the training part, however deep.
    """

    needs_path = True
    labels_optional = True

    def load(self, data: DataConfig, image_size: int) -> Source:
        """UserError: names the folder that is missing or empty, or a test class that was never trained."""
        root = existing_folder(data)
        train, test = _parts(root)
        name, found = root.resolve().name, folders(train)
        if not data.labels or not found:
            return Source(name, unlabelled(train, root, deep=not data.labels), ())
        classes = tuple(folder for folder in found if folder not in NO_CLASS)
        without = [folder for folder in found if folder in NO_CLASS]
        _tell(train, without)
        test_part = _test(test, classes, root) if test and classes else None
        return Source(name, labelled(train, classes, root, without=without), classes, test_part)


def _parts(root: Path) -> tuple[Path, Path | None]:
    if not (root / "train").is_dir():
        return root, None
    shipped = [root / name for name in ("test", "val") if (root / name).is_dir()]
    return root / "train", shipped[0] if shipped else None


def _tell(train: Path, without: list[str]) -> None:
    """What somebody may not expect who reads a folder for the first time."""
    for name in without:
        print(f"fedbench: {train / name}: no class, its images have no label", file=sys.stderr)
    loose = len(images_in(train))
    if loose:
        print(
            f"fedbench: {train}: {loose} image(s) beside the folders are not read, the folders are its classes; "
            "where they are none: data.labels=false",
            file=sys.stderr,
        )


def _test(folder: Path, classes: tuple[str, ...], root: Path) -> Part:
    """Labels are those of the training part, some of whose classes may be absent."""
    for name in class_folders(folder):
        if name not in classes:
            raise UserError(f"data.path: {folder / name} is no class of the training part: {', '.join(classes)}")
    return labelled(folder, classes, root)
