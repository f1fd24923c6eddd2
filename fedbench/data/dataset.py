"""The images of a run as uint8 tensors, with a split that does not depend on the run's seed.

Shapes: N images, C channels, H x W pixels.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fedbench.config.schema import DataConfig, EncoderConfig, PartitionConfig, SplitName
from fedbench.data.images import BATCH, convert
from fedbench.data.source import DataSource, Part, Source
from fedbench.data.split import Rows, hold_out, keep, split_off_test, whole
from fedbench.data.store import decoded
from fedbench.errors import UserError
from fedbench.plugins import load_plugin


class Labelled(NamedTuple):
    """Images uint8 (N, C, H, W), in memory or mapped into it, and labels int64 (N,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images uint8 (N, C, H, W) and labels int64 (N,) in 0..K-1, K = len(class_names), or -1 where unknown.

    Attributes:
        train_images: the clients'.
        test_images: what is scored, of the split that was asked for; none where the set has no labels.
        downstream: what a probe learns from, where that is not the clients' images.
        train_names: what a file of groups calls the clients' images.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    downstream: Labelled | None = None
    train_names: Sequence[str] = ()

    @property
    def probe_part(self) -> Labelled:
        """What a probe learns from."""
        return self.downstream or Labelled(self.train_images, self.train_labels)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over shape and bytes of the tensors, as hex."""
        digest = hashlib.sha256()
        parts = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        for tensor in (*parts, *(self.downstream or ())):
            digest.update(repr(tuple(tensor.shape)).encode())
            for chunk in tensor.split(BATCH):
                digest.update(chunk.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def data_source(data: DataConfig) -> DataSource:
    """The plugin that `data.name` names. UserError: there is none, or it does not allow what `data` asks for."""
    source = load_plugin("datasets", data.name, DataSource)()  # type: ignore[type-abstract]
    source.check(data)
    return source


def load_dataset(data: DataConfig, encoder: EncoderConfig, split: SplitName = "test") -> Dataset:
    """Load what `data` names, at the encoder's size and channels, on the CPU.

    The test part is the source's own, else a fixed 20 % of it, stratified by label. `data.num_train` then
    keeps a fixed random part of the training images, blind to their class; a smaller number keeps a subset
    of what a larger one keeps. Under the split `validation` the test images are not read: a fixed tenth of the
    labelled training images, stratified by label, is taken away before and scored instead. The last two loaded are
    kept (what a run trains on, what it is judged on), for the other cells of a grid.

    Errors: UserError naming the key, file or array.
    """
    of_the_images = data.model_copy(update={"partition": PartitionConfig()})
    return _load(of_the_images, encoder.image_size, encoder.in_channels, split)


@lru_cache(maxsize=2)
def _load(data: DataConfig, image_size: int, in_channels: int, split: SplitName) -> Dataset:
    source = data_source(data).load(data, image_size)
    _check_parts(source, _where(data))
    _check_classes(source, _where(data))
    train, scored = split_off_test(source, _where(data))
    probe = whole(source.downstream) if source.downstream else None
    if split == "validation" and probe is not None:
        probe, scored = hold_out(probe, _where(data))
    elif split == "validation":
        train, scored = hold_out(train, _where(data))
    train = keep(train, data.num_train)

    def take(chosen: Rows, name: str) -> Labelled:
        return _take(chosen, image_size, in_channels, f"{source.name} {name}")

    return Dataset(
        source.name,
        *take(train, "train"),
        *take(scored, split),
        source.class_names,
        take(probe, "downstream") if probe else None,
        _names(train),
    )


def _check_parts(source: Source, where: str) -> None:
    """UserError: parts differ in channels, or an image lacks a label of a known class."""
    parts = [part for part in (source.train, source.downstream, source.test) if part is not None]
    channels = {_channels(part) for part in parts}
    if len(channels) > 1:
        raise UserError(f"{where} has parts of {channels} channels; allowed: the same number in all of them")
    highest = len(source.class_names) - 1
    for part in parts:
        if not 0 < len(part.images) == len(part.labels) or int(part.labels.max()) > highest:
            raise UserError(f"{where}: allowed: one image or more, each with a label of 0 to {highest} (-1: none)")


def _channels(part: Part) -> int | None:
    return part.images.shape[1] if isinstance(part.images, Tensor) else part.images.channels


def _check_classes(source: Source, where: str) -> None:
    """UserError: a single class, or one without an image to learn from. (No classes at all is allowed.)"""
    classes = source.class_names
    if len(classes) == 1:
        raise UserError(f"{where} has 1 class; allowed: 2 classes or more")
    labels = (source.downstream or source.train).labels
    for name, count in zip(classes, labels[labels >= 0].bincount(minlength=len(classes)).tolist(), strict=True):
        if not count:
            raise UserError(f"{where}: class {name!r} has no image to learn from; add some, or remove it")


def _take(chosen: Rows, image_size: int, in_channels: int, name: str) -> Labelled:
    """The images at their size: of `Images`, decoded to a file that is mapped into memory."""
    (part, rows), images = chosen, chosen.part.images
    if isinstance(images, Tensor):
        return Labelled(convert(images[rows], image_size, in_channels), part.labels[rows])
    if not len(rows):
        return Labelled(torch.empty(0, in_channels, image_size, image_size, dtype=torch.uint8), part.labels[rows])
    return Labelled(decoded(images, rows, image_size, in_channels, name), part.labels[rows])


def _names(chosen: Rows) -> list[str]:
    names, rows = chosen.part.names, chosen.rows.tolist()
    return [str(row) for row in rows] if names is None else [names[row] for row in rows]


def _where(data: DataConfig) -> str:
    return f"data.name={data.name}" if data.path is None else f"data.path={data.path}"
