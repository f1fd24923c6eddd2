"""Decoded images, kept in files that are mapped into memory: decoded once, larger than memory if need be.

A file is named by a hash of what decides its pixels: the published bytes, which of the images, the size, the
channels and the versions of the decoders. It holds one array uint8 (M, C, S, S) and may be deleted at any time.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor
from tqdm import tqdm

from fedbench.data.images import Images
from fedbench.errors import UserError
from fedbench.files import user_path

Shape = tuple[int, int, int, int]


def decoded(images: Images, rows: Tensor, image_size: int, in_channels: int, name: str) -> Tensor:
    """The images `rows` (M,), ascending, as uint8 (M, C, S, S), mapped into memory; `name` is for the bar.

    UserError: an image cannot be read, or the disk is full.
    """
    shape = (len(rows), in_channels, image_size, image_size)
    path = folder() / f"{_key(images, rows, shape)}.npy"
    if not _is_whole(path):
        _write(path, shape, _with_bar(images.read(rows, image_size, in_channels), len(rows), name))
    return torch.from_numpy(np.load(path, mmap_mode="c"))  # c: torch wants it writable; the file is not written


def folder() -> Path:
    """`fedbench` in the user's cache folder, which XDG_CACHE_HOME names."""
    home = os.environ.get("XDG_CACHE_HOME")
    return user_path(home or "~/.cache") / "fedbench"


def _key(images: Images, rows: Tensor, shape: Shape) -> str:
    digest = hashlib.sha256(repr((shape, PIL.__version__, torchvision.__version__)).encode())
    for content in images.content(rows):
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


def _is_whole(path: Path) -> bool:
    try:
        np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):  # absent, or cut short by somebody else
        return False
    return True


def _write(path: Path, shape: Shape, batches: Iterator[Tensor]) -> None:
    """Written as a stream and renamed when whole: a full disk is an error, not a crash as with a mapped file."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_space(path.parent, int(np.prod(shape)))
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_whole(path):  # by another process, in the meantime; then `file` may be that file
                return
            _fill(file, shape, batches)
            part.replace(path)
    except OSError as error:
        raise UserError(
            f"decoded images cannot be kept in {path.parent} ({error.strerror}); make room there, or let "
            "XDG_CACHE_HOME name another folder"
        ) from error


def _fill(file: BinaryIO, shape: Shape, batches: Iterator[Tensor]) -> None:
    """Write the array and bring it to the disk; if that fails, the file is empty."""
    file.truncate(0)  # what a process left that was killed
    try:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for batch in batches:
            file.write(batch.numpy().data)
        file.flush()
        os.fsync(file.fileno())
    except BaseException:
        file.truncate(0)
        raise


def _check_space(where: Path, needed: int) -> None:
    free = shutil.disk_usage(where).free
    if needed > free:
        raise UserError(
            f"decoded images need {needed / 1e9:.1f} GB in {where}, of which {free / 1e9:.1f} GB are free; make "
            "room, let XDG_CACHE_HOME name a larger disk, or lower data.num_train or encoder.image_size"
        )


def _with_bar(batches: Iterator[Tensor], total: int, name: str) -> Iterator[Tensor]:
    """The same batches, and a bar that counts their images."""
    with tqdm(total=total, desc=f"reading {name}", unit="image", disable=None, leave=False) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))
