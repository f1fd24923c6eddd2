"""Images that are read when they are needed, some at a time: from an array, image files or an npz archive.

Shapes: N images in all, B at a time, C channels, H x W pixels as published, S x S as asked for.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from fedbench.errors import UserError

BATCH = 512  # images of an array converted at a time: bounds the copies
FILES = 256  # image files decoded at a time
MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})  # PIL's, of 8 bits a channel
MAX_PIXELS = 89_478_485  # that an image may announce; from here on PIL warns of a bomb. As RGB: 268 MB


class Images(ABC):
    """N images that are not in memory. Where `rows` (B,) are asked for, they are ascending.

    Attributes:
        channels: C, where all images have the same number; None: each has its own, and is converted.
    """

    channels: int | None = None

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    @abstractmethod
    def content(self, rows: Tensor) -> Iterator[bytes]:
        """All that decides the pixels of `rows`: the key under which the decoded images are kept."""

    @abstractmethod
    def read(self, rows: Tensor, image_size: int, in_channels: int) -> Iterator[Tensor]:
        """The images `rows` in batches, uint8 (B, C, S, S). UserError: names the file that cannot be read."""


class ArrayImages(Images):
    """An array uint8 (N, C, H, W), C = 1 or 3; it may be a view of a file that is mapped into memory."""

    def __init__(self, array_NCHW: NDArray[np.uint8]) -> None:
        self.array, self.channels = array_NCHW, array_NCHW.shape[1]

    def __len__(self) -> int:
        return len(self.array)

    def content(self, rows: Tensor) -> Iterator[bytes]:
        """The shape and the pixels as they are."""
        yield repr(self.array.shape).encode()
        for chunk in rows.split(BATCH):
            yield self.array[chunk.numpy()].tobytes()

    def read(self, rows: Tensor, image_size: int, in_channels: int) -> Iterator[Tensor]:
        """See `convert`."""
        for chunk in rows.split(BATCH):
            part = np.ascontiguousarray(self.array[chunk.numpy()])
            yield convert(torch.from_numpy(part), image_size, in_channels)


class FileImages(Images):
    """Image files of any size and of any number of 8-bit channels, which PIL converts."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def content(self, rows: Tensor) -> Iterator[bytes]:
        """The bytes of the files."""
        for row in rows.tolist():
            try:
                yield self.files[row].read_bytes()
            except OSError as error:
                raise _unreadable(self.files[row], error) from error

    def read(self, rows: Tensor, image_size: int, in_channels: int) -> Iterator[Tensor]:
        """Another size is reached by PIL (bilinear, antialiased), the aspect ratio not kept."""

        def decode(row: int) -> NDArray[np.uint8]:
            return _decode(self.files[row], image_size, in_channels)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for chunk in rows.split(FILES):
                images_BHWC = torch.from_numpy(np.stack(list(pool.map(decode, chunk.tolist()))))
                yield images_BHWC.permute(0, 3, 1, 2).contiguous()


def convert(images_BCHW: Tensor, image_size: int, in_channels: int) -> Tensor:
    """Channels by repeating or by luma, size by antialiased bilinear interpolation, each if it differs."""
    if images_BCHW.shape[1] != in_channels:
        images_BCHW = tv.rgb_to_grayscale(images_BCHW, num_output_channels=in_channels)
    size = [image_size, image_size]
    if list(images_BCHW.shape[2:]) == size:
        return images_BCHW
    return torch.cat([tv.resize(part, size, antialias=True) for part in images_BCHW.split(BATCH)])


def _decode(file: Path, image_size: int, in_channels: int) -> NDArray[np.uint8]:
    """Pixels (S, S, C)."""
    try:
        with Image.open(file) as opened:
            mode, picture = opened.mode, opened.convert("L" if in_channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(file, error) from error
    if mode not in MODES:
        raise UserError(f"data.path: image {file} has pixels of kind {mode!r}; allowed: 8 bits a channel")
    if picture.size != (image_size, image_size):
        picture = picture.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(image_size, image_size, in_channels)


def _unreadable(file: Path, error: Exception) -> UserError:
    return UserError(f"data.path: cannot read image {file} ({error}); replace or remove it")
