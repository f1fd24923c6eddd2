"""Folders of image files: PATH/CLASS/*.png, or PATH/train/CLASS/*.png and PATH/test (or val)."""

from pathlib import Path

from fedbench.config.schema import DataConfig
from fedbench.data.folders import class_folders, labelled
from fedbench.data.place import existing_folder
from fedbench.data.source import DataSource, Part, Source
from fedbench.errors import UserError


class ImageFolder(DataSource):
    """Classes are the sorted folder names of the training part."""

    needs_path = True

    def load(self, data: DataConfig, image_size: int) -> Source:
        """UserError: names the folder that is missing or empty, or a test class that was never trained."""
        root = existing_folder(data)
        train, test = _parts(root)
        classes = class_folders(train)
        test_part = None if test is None else _test(test, classes, root)
        return Source(root.resolve().name, labelled(train, classes, root), classes, test_part)


def _parts(root: Path) -> tuple[Path, Path | None]:
    if not (root / "train").is_dir():
        return root, None
    shipped = [root / name for name in ("test", "val") if (root / name).is_dir()]
    return root / "train", shipped[0] if shipped else None


def _test(folder: Path, classes: tuple[str, ...], root: Path) -> Part:
    """Labels are those of the training part, some of whose classes may be absent."""
    for name in class_folders(folder):
        if name not in classes:
            raise UserError(f"data.path: {folder / name} is no class of the training part: {', '.join(classes)}")
    return labelled(folder, classes, root)
