"""Images that are read when they are needed, some at a time: from an array, image files or an npz archive.

Shapes: N images in all, B at a time, C channels, H x W pixels as published, S x S as asked for.
"""

import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from fedbench.errors import UserError, shorten

BATCH = 512  # images of an array converted at a time: bounds the copies
FILES = 256  # image files decoded at a time
CHUNK = 1 << 28  # bytes of pixels at a time, where that is fewer images
PIXELS_A_BYTE = 8 * 1032  # of a file at most: deflate's ratio, one bit a pixel
LARGE = 1 << 22  # pixels of an image of which but one is decoded at a time: up to 16 bytes a pixel
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")  # PIL's other decoders see no file: one of them runs Ghostscript
ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})  # PIL's modes with a channel of transparency
MODES = ALPHA | {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"}  # of 8 bits a channel
RULES = b"upright, on white, the upper 8 of 16 bits"  # what becomes of a file besides PIL's decoding
MAX_PIXELS = 89_478_485  # that an image may announce; from here on PIL warns of a bomb. As RGB: 268 MB
LISTED = 20  # images that cannot be read of which each is named

_one_large = Lock()

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `_check_size` refuses those


class BrokenImagesError(UserError):
    """Images that cannot be read.

    Attributes:
        reasons: row -> why.
    """

    def __init__(self, reasons: Mapping[int, str], images: "Images") -> None:
        self.reasons = dict(reasons)
        named = {images.place(row): why for row, why in reasons.items()}
        super().__init__(f"data.path: {listing(named, len(images))}")


class Images(ABC):
    """N images that are not in memory. Where `rows` (B,) are asked for, they are ascending.

    Attributes:
        channels: C, where all images have the same number; None: each has its own, and is converted.
    """

    channels: int | None = None

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    def place(self, row: int) -> str:
        """Where a person finds the image."""
        return f"image {row}"

    @abstractmethod
    def content(self, rows: Tensor) -> Iterator[bytes]:
        """All that decides the pixels of `rows`: the key under which the decoded images are kept."""

    @abstractmethod
    def read(self, rows: Tensor, image_size: int, in_channels: int) -> Iterator[Tensor]:
        """The images `rows` in batches, uint8 (B, C, S, S).

        UserError: they cannot be read. `BrokenImagesError`: some cannot; raised after the batches of the others.
        """


class ArrayImages(Images):
    """An array uint8 (N, C, H, W), C = 1 or 3; it may be a view of a file that is mapped into memory."""

    def __init__(self, array_NCHW: NDArray[np.uint8]) -> None:
        self.array, self.channels = array_NCHW, array_NCHW.shape[1]

    def __len__(self) -> int:
        return len(self.array)

    def content(self, rows: Tensor) -> Iterator[bytes]:
        """The shape and the pixels as they are."""
        yield repr(self.array.shape).encode()
        for chunk in rows.split(at_a_time(BATCH, self.array.shape[1:])):
            yield self.array[chunk.numpy()].tobytes()

    def read(self, rows: Tensor, image_size: int, in_channels: int) -> Iterator[Tensor]:
        """See `convert`."""
        size = (image_size, image_size, in_channels)
        for chunk in rows.split(at_a_time(BATCH, self.array.shape[1:], size)):
            part = np.ascontiguousarray(self.array[chunk.numpy()])
            yield convert(torch.from_numpy(part), image_size, in_channels)


class FileImages(Images):
    """Image files of any size and kind, which PIL converts.

    They are turned upright as their EXIF orientation says; what is transparent is laid on white; of 16 bits the
    upper 8 are kept, as PIL does it with colours; palettes, CMYK and YCbCr become RGB without colour profiles.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def place(self, row: int) -> str:
        """Its file."""
        return str(self.files[row])

    def content(self, rows: Tensor) -> Iterator[bytes]:
        """The rules of the conversion, and the bytes of the files, or why there are none."""
        yield RULES
        for row in rows.tolist():
            try:
                yield self.files[row].read_bytes()
            except OSError as error:
                yield repr(error).encode()

    def read(self, rows: Tensor, image_size: int, in_channels: int) -> Iterator[Tensor]:
        """Another size is reached by PIL (bilinear, antialiased), the aspect ratio not kept."""

        def decode(row: int) -> NDArray[np.uint8] | str:
            return _decode(self.files[row], image_size, in_channels)

        reasons: dict[int, str] = {}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for chunk in rows.split(at_a_time(FILES, (image_size, image_size, in_channels))):
                found = dict(zip(chunk.tolist(), pool.map(decode, chunk.tolist()), strict=True))
                reasons |= {row: why for row, why in found.items() if isinstance(why, str)}
                images = [image for image in found.values() if not isinstance(image, str)]
                if images:
                    yield torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        if reasons:
            raise BrokenImagesError(reasons, self)


def convert(images_BCHW: Tensor, image_size: int, in_channels: int) -> Tensor:
    """Channels by repeating or by luma, size by antialiased bilinear interpolation, each if it differs."""
    if images_BCHW.shape[1] != in_channels:
        images_BCHW = tv.rgb_to_grayscale(images_BCHW, num_output_channels=in_channels)
    size = [image_size, image_size]
    if list(images_BCHW.shape[2:]) == size:
        return images_BCHW
    number = at_a_time(BATCH, (image_size, image_size, in_channels))
    return torch.cat([tv.resize(part, size, antialias=True) for part in images_BCHW.split(number)])


def at_a_time(number: int, *shapes: Sequence[int]) -> int:
    """`number`, or as many images of the largest of these shapes as `CHUNK` holds, one at least."""
    return max(1, min(number, CHUNK // max(map(math.prod, shapes))))


def listing(reasons: Mapping[str, str], total: int) -> str:
    """How many of `total` images cannot be read, and of the first of them, by place, why."""
    lines = [f"  {place}: {why}" for place, why in list(reasons.items())[:LISTED]]
    if len(reasons) > LISTED:
        lines.append(f"  ... and {len(reasons) - LISTED} more")
    return "\n".join([f"{len(reasons)} of {total} images cannot be read:", *lines])


def _decode(file: Path, image_size: int, in_channels: int) -> NDArray[np.uint8] | str:
    """Pixels (S, S, C), or why there are none."""
    try:
        with Image.open(file, formats=FORMATS) as opened:
            _check_size(opened.size)
            _check_claim(opened, file.stat().st_size)
            with _one_large if math.prod(opened.size) > LARGE else nullcontext():
                return _pixels(opened, image_size, in_channels)
    except MemoryError as error:
        raise UserError(f"data.path: image {file} needs more memory than there is") from error
    except Exception as error:  # damage makes PIL's decoders raise whatever comes of their arithmetic
        return _why(error)


def _pixels(opened: Image.Image, image_size: int, in_channels: int) -> NDArray[np.uint8]:
    """(S, S, C), decoded here."""
    ImageOps.exif_transpose(opened, in_place=True)
    picture = _plain(opened).convert("L" if in_channels == 1 else "RGB")
    if picture.size != (image_size, image_size):
        picture = picture.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(image_size, image_size, in_channels)


def _check_size(size: tuple[int, int]) -> None:
    """Before there is memory for the pixels. UserError: they are too many."""
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(f"it announces {size[0]} x {size[1]} pixels; allowed: {MAX_PIXELS:,} in all")


def _check_claim(opened: Image.Image, num_bytes: int) -> None:
    """UserError: so small a file cannot hold the pixels, for which memory would be taken before it is read."""
    held = num_bytes * PIXELS_A_BYTE
    least = 2 * LARGE if opened.format == "WEBP" else LARGE  # WebP keeps any size of one colour in 50 bytes
    if math.prod(opened.size) > max(held, least):
        size = f"{opened.size[0]} x {opened.size[1]}"
        raise UserError(f"it announces {size} pixels; its {num_bytes:,} bytes hold at most {held:,}")


def _plain(picture: Image.Image) -> Image.Image:
    """The same with 8 bits a channel and nothing transparent. UserError: other kinds of pixels."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode not in MODES:
        raise UserError(f"its pixels are of the kind {picture.mode!r}; allowed: 8 bits a channel, or 16 of grey")
    if picture.mode in ALPHA or "transparency" in picture.info:
        coloured = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
    return picture


def _why(error: Exception) -> str:
    """In words, without the file's name."""
    if isinstance(error, UnidentifiedImageError):
        return f"no whole image in the format {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return shorten(" ".join(str(error).split()) or type(error).__name__)
