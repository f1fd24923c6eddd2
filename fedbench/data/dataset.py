"""The images of a run as uint8 tensors, with a split that does not depend on the run's seed.

Shapes: N images, C channels, H x W pixels.
"""

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedbench.config.schema import DataConfig, EncoderConfig, PartitionConfig, SplitName
from fedbench.data.images import BATCH, convert, listing
from fedbench.data.source import DataSource, Part, Source
from fedbench.data.split import Rows, hold_out, keep, split_off_test, whole
from fedbench.data.store import decoded, will_be_drawn
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
        left_out: images that cannot be read and were left out, as `data.skip_broken` allows.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    downstream: Labelled | None = None
    train_names: Sequence[str] = ()
    left_out: int = 0

    @cached_property
    def probe_part(self) -> Labelled:
        """What a probe learns from: images with labels."""
        if self.downstream or (known := self.train_labels >= 0).all():
            return self.downstream or Labelled(self.train_images, self.train_labels)
        return Labelled(self.train_images[known], self.train_labels[known])

    @property
    def facts(self) -> dict[str, Any]:
        """For a manifest."""
        return {"name": self.name, "train_images": len(self.train_labels), "left_out": self.left_out}

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over shape and bytes of the tensors, as hex."""
        digest = hashlib.sha256()
        parts = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        for tensor in (*parts, *(self.downstream or ())):
            digest.update(repr(tuple(tensor.shape)).encode())
            for chunk in tensor.split(BATCH):
                digest.update(chunk.cpu().contiguous().numpy().data)
        will_be_drawn(self.train_images)  # this was the one reading in order
        return digest.hexdigest()


def data_source(data: DataConfig) -> DataSource:
    """The plugin that `data.name` names. UserError: there is none, or it does not allow what `data` asks for."""
    source = load_plugin("datasets", data.name, DataSource)()  # type: ignore[type-abstract]
    source.check(data)
    return source


def load_dataset(
    data: DataConfig, encoder: EncoderConfig, split: SplitName = "test", scored_as: str = ""
) -> Dataset:
    """Load what `data` names, at the encoder's size and channels, on the CPU.

    The test part is the source's own, else a fixed 20 % of it, stratified by label. `data.num_train` then
    keeps a fixed random part of the training images, blind to their class; a smaller number keeps a subset
    of what a larger one keeps. Under the split `validation` the test images are not read: a fixed tenth of the
    labelled training images, stratified by label, is taken away before and scored instead. The last two loaded are
    kept (what a run trains on, what it is judged on), for the other cells of a grid.

    Args:
        data: what to load.
        encoder: for which the images are resized and converted.
        split: what is scored.
        scored_as: the section of the configuration that must name labels to score on; "": none is needed.

    Errors: UserError naming the key, file or array; all images that cannot be read are named at once.
    """
    of_the_images = data.model_copy(update={"partition": PartitionConfig()})
    return _load(of_the_images, encoder.image_size, encoder.in_channels, split, scored_as)


@lru_cache(maxsize=2)
def _load(data: DataConfig, image_size: int, in_channels: int, split: SplitName, scored_as: str) -> Dataset:
    source = data_source(data).load(data, image_size)
    _check_parts(source, _where(data))
    _check_classes(source.class_names, (source.downstream or source.train).labels, _where(data))
    train, scored, probe = _chosen(source, data, split)
    if scored_as and not len(scored.rows):
        raise UserError(
            f"{scored_as}.name={data.name} has no labels to score on; allowed: "
            "evaluation.data={name: NAME, path: PATH}, a set that has"
        )

    def take(chosen: Rows, name: str) -> Taken:
        return _take(chosen, image_size, in_channels, f"{source.name} {name}")

    clients, judged = take(train, "train"), take(scored, split)
    learned = take(probe, "downstream") if probe else None
    taken = [part for part in (clients, judged, learned) if part]
    _check_readable(taken, data)
    dataset = Dataset(
        source.name,
        *clients.readable,
        *judged.readable,
        source.class_names,
        learned.readable if learned else None,
        clients.names,
        sum(len(part.broken) for part in taken),
    )
    if dataset.left_out:
        _check_classes(source.class_names, dataset.probe_part.labels, _where(data))
    return dataset


def _chosen(source: Source, data: DataConfig, split: SplitName) -> tuple[Rows, Rows, Rows | None]:
    """Rows of the clients, rows to score, and rows that a probe learns from, where these are others."""
    train, scored = split_off_test(source, _where(data))
    probe = whole(source.downstream) if source.downstream else None
    if split == "validation" and probe is not None:
        probe, scored = hold_out(probe, _where(data))
    elif split == "validation":
        train, scored = hold_out(train, _where(data))
    return keep(train, data.num_train), scored, probe


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
        if part is not source.train and int(part.labels.min()) < 0:
            raise UserError(f"{where}: an image to score, or for a probe, has no label; allowed: 0 to {highest}")


def _channels(part: Part) -> int | None:
    return part.images.shape[1] if isinstance(part.images, Tensor) else part.images.channels


def _check_classes(classes: Sequence[str], labels: Tensor, where: str) -> None:
    """UserError: a single class, or one without an image to learn from. (No classes at all is allowed.)"""
    if len(classes) == 1:
        raise UserError(f"{where} has 1 class; allowed: 2 classes or more, or data.labels=false where it is none")
    for name, count in zip(classes, labels[labels >= 0].bincount(minlength=len(classes)).tolist(), strict=True):
        if not count:
            raise UserError(f"{where}: class {name!r} has no image to learn from; add some, or remove it")


class Taken(NamedTuple):
    """Of the images of a part those that can be read, their names, and by place why the others cannot."""

    readable: Labelled
    names: list[str]
    broken: Mapping[str, str] = {}


def _take(chosen: Rows, image_size: int, in_channels: int, name: str) -> Taken:
    """The images at their size: of `Images`, decoded to a file that is mapped into memory."""
    (part, rows), images = chosen, chosen.part.images
    if isinstance(images, Tensor):
        _check_memory(len(rows) * in_channels * image_size**2, name)
        return Taken(Labelled(convert(images[rows], image_size, in_channels), part.labels[rows]), _names(chosen))
    if not len(rows):
        nothing = torch.empty(0, in_channels, image_size, image_size, dtype=torch.uint8)
        return Taken(Labelled(nothing, part.labels[rows]), [])
    found, broken = decoded(images, rows, image_size, in_channels, name)
    left = rows[~torch.isin(rows, torch.tensor(list(broken), dtype=rows.dtype))]
    reasons = {images.place(row): why for row, why in broken.items()}
    return Taken(Labelled(found, part.labels[left]), _names(Rows(part, left)), reasons)


def _check_memory(needed: int, name: str) -> None:
    """Before it is allocated: where memory runs out later, the system ends the process without a word."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there / 2:
        raise UserError(
            f"{name}: the images are {needed / 1e9:.1f} GB in memory; allowed: {there / 2e9:.1f} GB, half of what "
            "the machine has; lower encoder.image_size or data.num_train"
        )


def _names(chosen: Rows) -> list[str]:
    names, rows = chosen.part.names, chosen.rows.tolist()
    return [str(row) for row in rows] if names is None else [names[row] for row in rows]


def _check_readable(taken: Sequence[Taken], data: DataConfig) -> None:
    """Tell of the images that cannot be read. UserError: they may not be left out, or nothing would be left."""
    broken = {place: why for part in taken for place, why in part.broken.items()}
    if not broken:
        return
    found = f"{_where(data)}: {listing(broken, sum(len(part.names) for part in taken) + len(broken))}"
    if not data.skip_broken:
        raise UserError(f"{found}\nreplace or remove them, or leave them out: data.skip_broken=true")
    if any(part.broken and not part.names for part in taken):
        raise UserError(f"{found}\nwithout them nothing is left to learn from, or to score")
    print(f"fedbench: {found}\nfedbench: they are left out (data.skip_broken=true)", file=sys.stderr)


def _where(data: DataConfig) -> str:
    return f"data.name={data.name}" if data.path is None else f"data.path={data.path}"
