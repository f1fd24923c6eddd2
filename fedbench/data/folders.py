"""Folders of image files: one folder per class."""

from collections.abc import Sequence
from pathlib import Path

import torch

from fedbench.data.images import FileImages
from fedbench.data.source import UNLABELLED, Part
from fedbench.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def class_folders(folder: Path) -> tuple[str, ...]:
    """Their names, sorted. UserError: there is none."""
    found = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not found:
        raise UserError(f"data.path: no class folders in {folder}; allowed: one folder per class")
    return tuple(found)


def image_files(folder: Path) -> list[Path]:
    """Sorted. UserError: there is none, or no such folder."""
    inside = folder.iterdir() if folder.is_dir() else ()
    found = sorted(file for file in inside if file.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"data.path: no image in {folder}; allowed: {', '.join(SUFFIXES)}")
    return found


def labelled(folder: Path, classes: Sequence[str], root: Path, below: str = ".") -> Part:
    """The images `folder/CLASS/below/*` in the order of `classes`, those of which there is a folder.

    A name is the path from `root`. UserError: such a folder has no image.
    """
    there = [label for label, name in enumerate(classes) if (folder / name).is_dir()]
    found = [(file, label) for label in there for file in image_files(folder / classes[label] / below)]
    return _part([file for file, _ in found], [label for _, label in found], root)


def unlabelled(folder: Path, root: Path) -> Part:
    """The images `folder/*`; a name is the path from `root`."""
    files = image_files(folder)
    return _part(files, [UNLABELLED] * len(files), root)


def listed(files: Sequence[Path], labels: Sequence[int], root: Path) -> Part:
    """These files. UserError: one is missing."""
    for file in files:
        if not file.is_file():
            raise UserError(f"data.path: image {file} is missing")
    return _part(files, labels, root)


def _part(files: Sequence[Path], labels: Sequence[int], root: Path) -> Part:
    names = [file.relative_to(root).as_posix() for file in files]
    return Part(FileImages(files), torch.tensor(labels), names)
