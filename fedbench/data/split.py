"""Which images of a source are learned from, and which are scored: the same for every seed."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedbench.data.source import Part, Source
from fedbench.errors import UserError
from fedbench.random import generator

TEST_SHARE = 0.2  # of sources without a test part of their own
VALIDATION_SHARE = 0.1  # of the images that a probe learns from, where the split `validation` is scored


class Rows(NamedTuple):
    """Some of a part: ascending rows (M,)."""

    part: Part
    rows: Tensor


def split_off_test(source: Source, where: str) -> tuple[Rows, Rows]:
    """Rows of the training and the test part."""
    if source.test is not None:
        return whole(source.train), whole(source.test)
    if not source.class_names:
        return whole(source.train), Rows(source.train, torch.arange(0))
    try:
        return _take_away(whole(source.train), TEST_SHARE)
    except ValueError as error:
        raise UserError(
            f"{where} cannot be split 80/20 by class ({error}); add images or ship a test part"
        ) from error


def hold_out(chosen: Rows, where: str) -> tuple[Rows, Rows]:
    """What is left to learn from, and the validation images: a tenth of those that have a label."""
    try:
        return _take_away(chosen, VALIDATION_SHARE)
    except ValueError as error:
        raise UserError(
            f"evaluation.split=validation: {where} has too few labelled images to hold a tenth of each class out "
            f"({error}); allowed: test, or more images"
        ) from error


def _take_away(chosen: Rows, share: float) -> tuple[Rows, Rows]:
    """The rows without a fixed `share` of each class, and these, all labelled. ValueError: a class has too few."""
    from sklearn.model_selection import train_test_split  # takes a second, and most data have a test part

    labels = chosen.part.labels[chosen.rows]
    labelled, others = chosen.rows[labels >= 0], chosen.rows[labels < 0]
    parts = train_test_split(labelled.numpy(), test_size=share, random_state=0, stratify=labels[labels >= 0])
    kept, taken = (torch.from_numpy(np.sort(rows)) for rows in parts)
    return Rows(chosen.part, torch.cat([kept, others]).sort().values), Rows(chosen.part, taken)


def whole(part: Part) -> Rows:
    """All rows."""
    return Rows(part, torch.arange(len(part.labels)))


def keep(chosen: Rows, num_train: int | None) -> Rows:
    """A fixed part of them, blind to their class. UserError: there are fewer than `num_train`."""
    if num_train is None:
        return chosen
    count = len(chosen.rows)
    if num_train > count:
        raise UserError(f"data.num_train={num_train} exceeds the training part; allowed: 1 to {count}")
    order = torch.randperm(count, generator=generator(0, "data.num_train"))
    return Rows(chosen.part, chosen.rows[order[:num_train].sort().values])
