"""Folders of image files: one folder per class, or images alone."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from fedbench.data.images import FileImages
from fedbench.data.source import UNLABELLED, Part
from fedbench.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def folders(folder: Path) -> list[str]:
    """The names of the folders in it, sorted, hidden ones left out."""
    return sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def class_folders(folder: Path) -> tuple[str, ...]:
    """Their names, sorted. UserError: there is none."""
    found = folders(folder)
    if not found:
        raise UserError(f"data.path: no class folders in {folder}; allowed: one folder per class")
    return tuple(found)


def image_files(folder: Path, deep: bool = False) -> list[Path]:
    """Those in it, `deep` also those in its folders, sorted. UserError: there is none, or no such folder."""
    found = images_in(folder, deep)
    if not found:
        deeper = "; its folders have some: data.labels=false takes them" if images_in(folder, deep=True) else ""
        raise UserError(f"data.path: no image in {folder}; allowed: {', '.join(SUFFIXES)}{deeper}")
    return found


def labelled(
    folder: Path, classes: Sequence[str], root: Path, below: str = ".", without: Sequence[str] = ()
) -> Part:
    """The images `folder/CLASS/below/*` in the order of `classes`, those of which there is a folder.

    Then those of the folders `without` a label. A name is the path from `root`. UserError: such a folder has no
    image.
    """
    there = [label for label, name in enumerate(classes) if (folder / name).is_dir()]
    found = [(file, label) for label in there for file in image_files(folder / classes[label] / below)]
    found += [(file, UNLABELLED) for name in without for file in image_files(folder / name)]
    return _part([file for file, _ in found], [label for _, label in found], root)


def unlabelled(folder: Path, root: Path, deep: bool = False) -> Part:
    """The images `folder/*`, or `deep` all below it; a name is the path from `root`."""
    files = image_files(folder, deep)
    return _part(files, [UNLABELLED] * len(files), root)


def listed(files: Sequence[Path], labels: Sequence[int], root: Path) -> Part:
    """These files. UserError: one is missing."""
    for file in files:
        if not file.is_file():
            raise UserError(f"data.path: image {file} is missing")
    return _part(files, labels, root)


def images_in(folder: Path, deep: bool = False) -> list[Path]:
    """Those in it, or none; hidden ones and what is no file are left out."""
    inside: Iterable[Path] = folder.rglob("*") if deep else folder.iterdir() if folder.is_dir() else ()
    files = (file for file in inside if file.suffix.lower() in SUFFIXES and file.is_file())
    return sorted(file for file in files if not _is_hidden(file.relative_to(folder)))


def _is_hidden(path: Path) -> bool:
    """As what macOS leaves beside an image (`._1.jpg`), and the folders of caches."""
    return any(part.startswith(".") for part in path.parts)


def _part(files: Sequence[Path], labels: Sequence[int], root: Path) -> Part:
    names = [file.relative_to(root).as_posix() for file in files]
    return Part(FileImages(files), torch.tensor(labels), names)
