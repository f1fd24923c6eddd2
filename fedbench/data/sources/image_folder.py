"""Folders of image files: PATH/CLASS/*.png, or PATH/train/CLASS/*.png and PATH/test (or val)."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from fedbench.data.sources import Part, Source
from fedbench.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def load(path: str, image_size: int, in_channels: int) -> Source:
    """Decode every image to `in_channels` x `image_size` x `image_size`; classes are the sorted folder names.

    An image of another size is resized by PIL (bilinear, antialiased), its aspect ratio not kept.
    UserError: names the folder or the file that is missing, empty or unreadable.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"data.path={path}: no such folder; allowed: a folder with one folder per class")
    train, test = _parts(root)
    classes = tuple(_subfolders(train))
    train_part = _read(train, classes, image_size, in_channels)
    test_part = None if test is None else _read(test, classes, image_size, in_channels)
    return Source(root.resolve().name, train_part, test_part, classes)


def _parts(root: Path) -> tuple[Path, Path | None]:
    if not (root / "train").is_dir():
        return root, None
    shipped = [root / name for name in ("test", "val") if (root / name).is_dir()]
    return root / "train", shipped[0] if shipped else None


def _subfolders(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _read(folder: Path, classes: Sequence[str], image_size: int, in_channels: int) -> Part:
    files, labels = _list(folder, classes)
    images_NHWC = np.empty((len(files), image_size, image_size, in_channels), dtype=np.uint8)

    def decode(index: int) -> None:
        images_NHWC[index] = _decode(files[index], image_size, in_channels)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(decode, range(len(files)))
        for _ in tqdm(done, total=len(files), desc=f"reading {folder.name}", unit="image", disable=None):
            pass
    return Part(torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))


def _list(folder: Path, classes: Sequence[str]) -> tuple[list[Path], list[int]]:
    """The image files of the folder's classes in sorted order, and their labels."""
    found = _subfolders(folder)
    if not found:
        raise UserError(f"data.path: no class folders in {folder}; allowed: one folder per class")
    files, labels = [], []
    for name in found:
        if name not in classes:
            raise UserError(f"data.path: {folder / name} is no class of the training part: {', '.join(classes)}")
        images = sorted(file for file in (folder / name).iterdir() if file.suffix.lower() in SUFFIXES)
        if not images:
            raise UserError(f"data.path: no image in {folder / name}; allowed: {', '.join(SUFFIXES)}")
        files += images
        labels += [classes.index(name)] * len(images)
    return files, labels


def _decode(file: Path, image_size: int, in_channels: int) -> NDArray[np.uint8]:
    """Pixels (H, W, C)."""
    try:
        with Image.open(file) as opened:
            picture = opened.convert("L" if in_channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"data.path: cannot read image {file} ({error}); replace or remove it") from error
    if picture.size != (image_size, image_size):
        picture = picture.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(image_size, image_size, in_channels)
