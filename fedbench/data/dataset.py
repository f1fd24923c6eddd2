"""The images of a run as uint8 tensors, with a split that does not depend on the run's seed.

Shapes: N images, C channels, H x W pixels.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import import_module

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from fedbench.config.schema import DataConfig, EncoderConfig, PartitionConfig
from fedbench.data.sources import Part, Source
from fedbench.errors import UserError
from fedbench.random import generator

TEST_SHARE = 0.2  # of sources without a test part of their own
RESIZE_BATCH = 4096  # images resized at a time: bounds the float copies


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images uint8 (N, C, H, W) and labels int64 (N,) in 0..K-1, K = len(class_names)."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over shape and bytes of the four tensors, as hex."""
        digest = hashlib.sha256()
        for tensor in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def load_dataset(data: DataConfig, encoder: EncoderConfig) -> Dataset:
    """Load what `data` names, at the encoder's size and channels, on the CPU.

    The test part is the source's own, else a fixed 20 % of it, stratified by label. `data.num_train` then
    keeps a fixed random part of the training images, blind to their class; a smaller number keeps a subset
    of what a larger one keeps. The last two loaded are kept (what a run trains on, what it is judged
    on), for the other cells of a grid.

    Errors: UserError naming the key, file or array.
    """
    of_the_images = data.model_copy(update={"partition": PartitionConfig()})
    return _load(of_the_images, encoder.image_size, encoder.in_channels)


@lru_cache(maxsize=2)
def _load(data: DataConfig, image_size: int, in_channels: int) -> Dataset:
    module = import_module(f"fedbench.data.sources.{data.name}")
    source: Source = module.load(data.path, image_size, in_channels)
    if len(source.class_names) < 2:
        raise UserError(f"{_where(data)} has {len(source.class_names)} class; allowed: 2 classes or more")
    train, test = (source.train, source.test) if source.test else _split(source.train, data)
    train = _keep(train, data.num_train)
    return Dataset(
        source.name,
        _convert(train.images, image_size, in_channels),
        train.labels,
        _convert(test.images, image_size, in_channels),
        test.labels,
        source.class_names,
    )


def _split(part: Part, data: DataConfig) -> tuple[Part, Part]:
    indices = np.arange(len(part.labels))
    try:
        train, test = train_test_split(indices, test_size=TEST_SHARE, random_state=0, stratify=part.labels)
    except ValueError as error:
        raise UserError(
            f"{_where(data)} cannot be split 80/20 by class ({error}); add images or ship a test part"
        ) from error
    return _select(part, torch.from_numpy(np.sort(train))), _select(part, torch.from_numpy(np.sort(test)))


def _keep(part: Part, num_train: int | None) -> Part:
    if num_train is None:
        return part
    count = len(part.labels)
    if num_train > count:
        raise UserError(f"data.num_train={num_train} exceeds the training part; allowed: 1 to {count}")
    order = torch.randperm(count, generator=generator(0, "data.num_train"))
    return _select(part, order[:num_train].sort().values)


def _select(part: Part, indices_M: Tensor) -> Part:
    return Part(part.images[indices_M], part.labels[indices_M])


def _convert(images_NCHW: Tensor, image_size: int, in_channels: int) -> Tensor:
    """Channels by repeating or by luma, size by antialiased bilinear interpolation, each if it differs."""
    if images_NCHW.shape[1] != in_channels:
        images_NCHW = tv.rgb_to_grayscale(images_NCHW, num_output_channels=in_channels)
    size = [image_size, image_size]
    if list(images_NCHW.shape[2:]) == size:
        return images_NCHW
    return torch.cat([tv.resize(part, size, antialias=True) for part in torch.split(images_NCHW, RESIZE_BATCH)])


def _where(data: DataConfig) -> str:
    return f"data.name={data.name}" if data.path is None else f"data.path={data.path}"
