"""Arrays of an npz archive, never unpickled: labels at once, images as a stream larger than memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from zipfile import BadZipFile, ZipFile
from zlib import error as ZlibError

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from fedbench.data.images import BATCH, ArrayImages, Images, convert
from fedbench.errors import UserError

BROKEN = (OSError, ValueError, AttributeError, TypeError, EOFError, BadZipFile, ZlibError)
ALLOWED_IMAGES = "uint8 (N, H, W) or (N, H, W, C), C = 1 or 3, not empty"


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
        for start, images_BHWC in self._batches():
            wanted = rows[(rows >= start) & (rows < start + len(images_BHWC))] - start
            if len(wanted):
                images_BCHW = torch.from_numpy(images_BHWC[wanted.numpy()]).permute(0, 3, 1, 2).contiguous()
                yield convert(images_BCHW, image_size, in_channels)

    def _batches(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """The whole array piece by piece, (B, H, W, C), each with the row at which it begins."""
        num_bytes = int(np.prod(self.shape_NHWC[1:]))
        with _reading(self.path), ZipFile(self.path) as archive, archive.open(f"{self.name}.npy") as file:
            _header(file)
            for start in range(0, len(self), BATCH):
                data = file.read(num_bytes * min(BATCH, len(self) - start))
                yield start, np.frombuffer(data, np.uint8).reshape(-1, *self.shape_NHWC[1:])


def names(path: Path) -> list[str]:
    """Of the arrays, sorted. UserError: no such file, or no archive."""
    with _reading(path), ZipFile(path) as archive:
        return sorted(name.removesuffix(".npy") for name in archive.namelist())


def read_pair(path: Path, prefix: str, label_shape: str = "(N,)") -> tuple[Images, NDArray[np.generic]]:
    """The arrays `<prefix>images` and `<prefix>labels`; labels in the shape `(N,)` or `(N, 1)` become (N,).

    UserError: one is missing, or its type, shape or length is wrong.
    """
    found = names(path)
    for name in (f"{prefix}images", f"{prefix}labels"):
        if name not in found:
            raise UserError(f"data.path={path}: array `{name}` is missing; found: {found}")
    images, labels = _read_images(path, f"{prefix}images"), read_array(path, f"{prefix}labels")
    fits = labels.shape[1:] == ((1,) if label_shape == "(N, 1)" else ())
    if labels.dtype.kind not in "iu" or labels.ndim == 0 or not fits:
        raise wrong(path, f"{prefix}labels", labels.dtype, labels.shape, f"integers {label_shape}")
    if len(images) != len(labels):
        allowed = f"as many as `{prefix}images`: {len(images)}"
        raise wrong(path, f"{prefix}labels", labels.dtype, labels.shape, allowed)
    return images, labels.reshape(-1)


def _read_images(path: Path, name: str) -> Images:
    with _reading(path), ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        shape, fortran_order, dtype = _header(file)
    channels_fit = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    if dtype != np.uint8 or not channels_fit or 0 in shape:
        raise wrong(path, name, dtype, shape, ALLOWED_IMAGES)
    if fortran_order:  # its rows do not lie together
        array = read_array(path, name).astype(np.uint8, copy=False)
        return ArrayImages(np.moveaxis(array, 3, 1) if array.ndim == 4 else array[:, None])
    return ArchiveImages(path, name, shape)


def read_array(path: Path, name: str) -> NDArray[np.generic]:
    """The array `name`, in memory. UserError: it holds Python objects, or the file is broken."""
    with _reading(path), np.load(path, allow_pickle=False) as archive:
        array: NDArray[np.generic] = archive[name]
        return array


def wrong(path: Path, name: str, dtype: object, shape: tuple[int, ...], allowed: str) -> UserError:
    """What an array is and what it may be."""
    return UserError(f"data.path={path}: `{name}` is {dtype} {shape}; allowed: {allowed}")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, "np.dtype[np.generic]"]:
    """Shape, whether in Fortran order, and type; the file is then at the first value."""
    version = npy.read_magic(file)
    return npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"data.path={path}: no such file; allowed: a .npz file") from None
    except BROKEN as error:
        raise UserError(f"data.path={path}: not a .npz file of plain arrays ({error})") from error
