"""Arrays of an npz archive, never unpickled: labels at once, images as a stream larger than memory."""

import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple
from zipfile import ZipFile

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from fedbench.data.images import BATCH, MAX_PIXELS, ArrayImages, Images, at_a_time, convert
from fedbench.errors import UserError, shorten, shown

MAX_IMAGES = 50_000_000  # of an array; their labels are in memory
MAX_WHOLE = 1 << 30  # bytes of an array that cannot be read piece by piece
ALLOWED_IMAGES = (
    f"uint8 (N, H, W) or (N, H, W, C), C = 1 or 3, not empty, {MAX_PIXELS:,} pixels an image at most, "
    f"{MAX_IMAGES:,} images at most"
)
DEFLATED = 1032  # bytes that one byte of an archive can become (zlib's format)


class Header(NamedTuple):
    """What an array says of itself; `offset` is where its values begin."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: "np.dtype[np.generic]"
    offset: int

    @property
    def num_bytes(self) -> int:
        """Of its values, as a whole number that does not overflow."""
        return math.prod(self.shape) * self.dtype.itemsize


class ArchiveImages(Images):
    """The array `name` of the archive `path`, uint8 (N, H, W, C), or (N, H, W) as C = 1, in C order."""

    def __init__(self, path: Path, name: str, shape: tuple[int, ...]) -> None:
        self.path, self.name = path, name
        self.shape_NHWC = (*shape, 1) if len(shape) == 3 else shape
        self.channels = self.shape_NHWC[3]

    def __len__(self) -> int:
        return self.shape_NHWC[0]

    def content(self, rows: Tensor) -> Iterator[bytes]:
        """The bytes of the whole archive, the array's name and the rows."""
        yield self.name.encode()
        yield rows.numpy().tobytes()
        with _reading(self.path), self.path.open("rb") as file:
            while chunk := file.read(1 << 24):
                yield chunk

    def read(self, rows: Tensor, image_size: int, in_channels: int) -> Iterator[Tensor]:
        """See `convert`."""
        number = at_a_time(BATCH, self.shape_NHWC[1:], (image_size, image_size, in_channels))
        for start, images_BHWC in self._batches(number):
            wanted = rows[(rows >= start) & (rows < start + len(images_BHWC))] - start
            if len(wanted):
                images_BCHW = torch.from_numpy(images_BHWC[wanted.numpy()]).permute(0, 3, 1, 2).contiguous()
                yield convert(images_BCHW, image_size, in_channels)

    def _batches(self, size: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """The whole array `size` images at a time, (B, H, W, C), each piece with the row at which it begins."""
        num_bytes = math.prod(self.shape_NHWC[1:])
        with _reading(self.path), ZipFile(self.path) as archive, archive.open(f"{self.name}.npy") as file:
            _read_header(file)
            for start in range(0, len(self), size):
                data = file.read(num_bytes * min(size, len(self) - start))
                yield start, np.frombuffer(data, np.uint8).reshape(-1, *self.shape_NHWC[1:])


def names(path: Path) -> list[str]:
    """Of the arrays, sorted. UserError: no such file, or no archive."""
    with _reading(path):
        if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):  # a pipe has no end
            raise UserError(f"data.path={path}: no file but a device or a pipe; allowed: a .npz file")
        with ZipFile(path) as archive:
            return sorted(name.removesuffix(".npy") for name in archive.namelist())


def read_pair(path: Path, prefix: str, label_shape: str = "(N,)") -> tuple[Images, NDArray[np.generic]]:
    """The arrays `<prefix>images` and `<prefix>labels`; labels in the shape `(N,)` or `(N, 1)` become (N,).

    UserError: one is missing, or its type, shape or length is wrong.
    """
    _check_there(path, f"{prefix}images", f"{prefix}labels")
    images, name = read_images(path, f"{prefix}images"), f"{prefix}labels"
    shape, _, dtype, _ = _header(path, name)  # before there is memory for them
    if dtype.kind not in "iu" or not shape or shape[1:] != ((1,) if label_shape == "(N, 1)" else ()):
        raise wrong(path, name, dtype, shape, f"integers {label_shape}")
    if len(images) != shape[0]:
        raise wrong(path, name, dtype, shape, f"as many as `{prefix}images`: {len(images)}")
    return images, read_array(path, name).reshape(-1)


def _check_there(path: Path, *wanted: str) -> None:
    found = names(path)
    for name in wanted:
        if name not in found:
            raise UserError(f"data.path={path}: array `{name}` is missing; found: {shown(found)}")


def read_images(path: Path, name: str) -> Images:
    """The array `name`, without its values. UserError: it is missing, or its type or shape is wrong."""
    _check_there(path, name)
    shape, fortran_order, dtype, _ = header = _header(path, name)
    channels_fit = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    fits = channels_fit and min(shape) > 0 and shape[1] * shape[2] <= MAX_PIXELS and shape[0] <= MAX_IMAGES
    if dtype != np.uint8 or not fits:
        raise wrong(path, name, dtype, shape, ALLOWED_IMAGES)
    if fortran_order and header.num_bytes > MAX_WHOLE:
        allowed = f"{MAX_WHOLE:,} bytes in Fortran order; save it in C order: np.ascontiguousarray(images)"
        raise wrong(path, name, dtype, shape, allowed)
    if fortran_order:  # its rows do not lie together
        array = read_array(path, name).astype(np.uint8, copy=False)
        return ArrayImages(np.moveaxis(array, 3, 1) if array.ndim == 4 else array[:, None])
    return ArchiveImages(path, name, shape)


def read_array(path: Path, name: str) -> NDArray[np.generic]:
    """The array `name`, in memory. UserError: it holds Python objects, or the file is broken."""
    _header(path, name)
    with _reading(path), np.load(path, allow_pickle=False) as archive:
        array: NDArray[np.generic] = archive[name]
        return array


def wrong(path: Path, name: str, dtype: object, shape: tuple[int, ...], allowed: str) -> UserError:
    """What an array is and what it may be."""
    return UserError(f"data.path={path}: `{name}` is {shorten(str(dtype))} {shown(shape)}; allowed: {allowed}")


def _header(path: Path, name: str) -> Header:
    """Of the array `name`, before there is memory for it. UserError: the archive cannot hold what it announces."""
    with _reading(path), ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        header, member = _read_header(file), archive.getinfo(f"{name}.npy")
        packed = min(member.compress_size, path.stat().st_size)
        held = min(member.file_size, packed * DEFLATED) - header.offset
    if header.dtype.hasobject:
        raise UserError(f"data.path={path}: not a .npz file of plain arrays (`{name}` holds Python objects)")
    if min(header.shape, default=0) < 0 or header.num_bytes > held:
        allowed = f"a shape whose values are in the file, which holds at most {max(held, 0):,} bytes of them"
        raise wrong(path, name, header.dtype, header.shape, allowed)
    return header


def _read_header(file: IO[bytes]) -> Header:
    """The file is then at the first value."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return Header(*read(file), file.tell())


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"data.path={path}: no such file; allowed: a .npz file") from None
    except MemoryError as error:
        raise UserError(f"data.path={path}: its arrays need more memory than there is ({error})") from error
    except Exception as error:  # damage makes zipfile, zlib and numpy raise many kinds
        raise UserError(f"data.path={path}: not a .npz file of plain arrays ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return shorten(" ".join(str(error).split()) or type(error).__name__)
