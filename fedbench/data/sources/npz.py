"""A numpy archive: `images` uint8 (N, H, W) or (N, H, W, C), `labels` (N,) integers; optionally a test part.

The test part is `test_images` and `test_labels`. Labels may be any integers: sorted, they become 0..K-1.
"""

from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbench.data.sources import Part, Source
from fedbench.errors import UserError

NAMES = ("images", "labels")


def load(path: str, image_size: int, in_channels: int) -> Source:
    """Read the archive at `path` without unpickling. UserError: names the array that is missing or wrong."""
    arrays = _read(path)
    images, labels = _part(path, arrays, "")
    classes = np.unique(labels)
    test = None
    if "test_images" in arrays or "test_labels" in arrays:
        test_images, test_labels = _part(path, arrays, "test_")
        test = Part(test_images, _indices(path, "test_labels", test_labels, classes))
    train = Part(images, _indices(path, "labels", labels, classes))
    return Source(Path(path).stem, train, test, tuple(str(name) for name in classes))


def _read(path: str) -> Mapping[str, NDArray[np.generic]]:
    try:
        with np.load(Path(path).expanduser(), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if name.removeprefix("test_") in NAMES}
    except FileNotFoundError:
        raise UserError(f"data.path={path}: no such file; allowed: a .npz file") from None
    except (OSError, ValueError, AttributeError, TypeError, EOFError, BadZipFile, ZlibError) as error:
        raise UserError(f"data.path={path}: not a .npz file of plain arrays ({error})") from error


def _part(path: str, arrays: Mapping[str, NDArray[np.generic]], prefix: str) -> tuple[Tensor, NDArray[np.generic]]:
    for name in NAMES:
        if prefix + name not in arrays:
            raise UserError(f"data.path={path}: array `{prefix}{name}` is missing; found: {sorted(arrays)}")
    images, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"]
    channels_fit = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if images.dtype != np.uint8 or not channels_fit or not images.size:
        raise _wrong(path, f"{prefix}images", images, "uint8 (N, H, W) or (N, H, W, C), C = 1 or 3, not empty")
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise _wrong(path, f"{prefix}labels", labels, "integers (N,)")
    if len(images) != len(labels):
        raise _wrong(path, f"{prefix}labels", labels, f"as many as `{prefix}images`: {len(images)}")
    images_NHWC = torch.from_numpy(images if images.ndim == 4 else images[..., None])
    return images_NHWC.permute(0, 3, 1, 2).contiguous(), labels


def _indices(path: str, name: str, labels: NDArray[np.generic], classes: NDArray[np.generic]) -> Tensor:
    unknown = np.setdiff1d(labels, classes)
    if unknown.size:
        raise UserError(f"data.path={path}: `{name}` has {unknown[0]}; allowed: the values of `labels`")
    return torch.from_numpy(np.searchsorted(classes, labels).astype(np.int64))


def _wrong(path: str, name: str, array: NDArray[np.generic], allowed: str) -> UserError:
    return UserError(f"data.path={path}: `{name}` is {array.dtype} {array.shape}; allowed: {allowed}")
