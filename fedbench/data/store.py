"""Decoded images, kept in files that are mapped into memory: decoded once, larger than memory if need be.

A file is named by a hash of what decides its pixels: the published bytes, which of the images, the size, the
channels and the versions of the decoders. It holds one array uint8 (M, C, S, S) of the images that can be read; a
JSON file beside it says which of the others cannot, and why, and has a checksum of the pixels. Both may be
deleted at any time.
"""

import fcntl
import hashlib
import json
import mmap
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import PIL
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from fedbench.data.images import BATCH, BrokenImagesError, Images
from fedbench.errors import UserError
from fedbench.files import cache_folder, write_atomically

Shape = tuple[int, int, int, int]
_checked: set[tuple[Path, str, int]] = set()  # files whose pixels this process has seen to be right
_mapped: WeakValueDictionary[int, NDArray[np.uint8]] = (
    WeakValueDictionary()
)  # address -> the mapped file that is there


class Decoded(NamedTuple):
    """Images uint8 (M, C, S, S), mapped into memory, without those that cannot be read: row -> why."""

    images: Tensor
    broken: dict[int, str]


def decoded(images: Images, rows: Tensor, image_size: int, in_channels: int, name: str) -> Decoded:
    """The images `rows` (M,), ascending; `name` is for the bar.

    UserError: they cannot be read at all, or the disk is full.
    """
    shape = (len(rows), in_channels, image_size, image_size)
    path = cache_folder() / f"{_key(images, rows, shape)}.npy"
    if not _is_whole(path, shape):
        _write(path, shape, _with_bar(images.read(rows, image_size, in_channels), len(rows), name))
    array = np.load(path, mmap_mode="c")  # c: torch wants it writable; the file is not written
    pixels = torch.from_numpy(array)
    _mapped[pixels.untyped_storage().data_ptr()] = array
    return Decoded(pixels, _noted(path).broken)


def will_be_drawn(images: Tensor) -> None:
    """From here on `images` are read one here, one there: where they are a mapped file, nothing is read ahead.

    Of a set larger than memory a batch would else read, with each of its images, megabytes that nobody asked for.
    """
    array = _mapped.get(images.untyped_storage().data_ptr())
    if array is not None and isinstance(array.base, mmap.mmap):
        array.base.madvise(mmap.MADV_RANDOM)


def _key(images: Images, rows: Tensor, shape: Shape) -> str:
    digest = hashlib.sha256(repr((shape, PIL.__version__, torchvision.__version__)).encode())
    for content in images.content(rows):
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


def _is_whole(path: Path, shape: Shape) -> bool:
    """Whether every image of such a shape is in it or known to be broken, and pixels are those that were written.

    A process looks at the pixels once.
    """
    try:
        array, note, facts = np.lib.format.open_memmap(path, mode="r"), _noted(path), path.stat()
        if array.dtype != np.uint8 or (len(array) + len(note.broken), *array.shape[1:]) != shape:
            return False
        known = (path, note.sha256, facts.st_mtime_ns)
        if known not in _checked and _digest(array) != note.sha256:
            print(f"fedbench: {path} is not what was written; the images are decoded again", file=sys.stderr)
            return False
    except (OSError, ValueError, EOFError, OverflowError, AttributeError, TypeError):
        return False  # absent, or cut short or damaged by somebody else
    _checked.add(known)
    return True


class Note(NamedTuple):
    """What stands beside the array: SHA-256 of its pixels, as hex, and row -> why an image is not in it."""

    sha256: str
    broken: dict[int, str]


def _noted(path: Path) -> Note:
    """ValueError, OSError: there is none, or it is damaged or of an earlier version."""
    content = json.loads(path.with_suffix(".json").read_bytes())
    try:
        return Note(content["sha256"], {int(row): str(why) for row, why in content["broken"].items()})
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from error


def _digest(array: NDArray[np.uint8]) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(array), BATCH):
        digest.update(np.ascontiguousarray(array[start : start + BATCH]).data)
    return digest.hexdigest()


def _write(path: Path, shape: Shape, batches: Iterator[Tensor]) -> None:
    """Written as a stream and renamed when whole: a full disk is an error, not a crash as with a mapped file."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_space(path.parent, int(np.prod(shape)))
        with open(part, "r+b", opener=_opener) as file:  # Path.open takes no opener
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_whole(path, shape):  # by another process, in the meantime; then `file` may be that file
                return
            note = _fill(file, shape, batches)
            write_atomically(path.with_suffix(".json"), json.dumps(note._asdict()).encode())
            part.replace(path)
    except OSError as error:
        raise UserError(
            f"decoded images cannot be kept in {path.parent} ({error.strerror}); make room there, or let "
            "XDG_CACHE_HOME name another folder"
        ) from error


def _fill(file: BinaryIO, shape: Shape, batches: Iterator[Tensor]) -> Note:
    """Write the array and bring it to the disk. If it fails, the file is empty."""
    file.truncate(0)  # what a process left that was killed
    digest, broken = hashlib.sha256(), dict[int, str]()
    try:
        begin = _write_header(file, shape)
        try:
            for batch in batches:
                digest.update(batch.numpy().data)
                file.write(batch.numpy().data)
        except BrokenImagesError as error:
            broken = error.reasons
            assert _write_header(file, (shape[0] - len(broken), *shape[1:])) == begin  # numpy leaves room for it
        file.flush()
        os.fsync(file.fileno())
    except BaseException:
        file.truncate(0)
        raise
    return Note(digest.hexdigest(), broken)


def _write_header(file: BinaryIO, shape: Shape) -> int:
    """At the begin of the file; returns where the pixels begin."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.tell()


def _opener(path: str, flags: int) -> int:
    """To read and write anywhere in a file that is there or not, and keep what is in it."""
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o666)


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
