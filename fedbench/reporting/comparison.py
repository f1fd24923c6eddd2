"""Runs gathered by what they share: a cell's seeds, and the cells that may stand in one table."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

from fedbench.config.load import UNTRAINED
from fedbench.tracking.runs import LABELS, Run

T = TypeVar("T")
KINDS = ("", "centralised", UNTRAINED)  # of cells: a federation, and what federations are compared with
OF_CLIENTS = ("federation.num_clients", "data.partition")


@dataclass(frozen=True)
class Cell:
    """Runs that differ in nothing but the seed, in order of seed, under one protocol."""

    runs: tuple[Run, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """See `Run.settings`."""
        return self.runs[0].settings

    @property
    def kind(self) -> str:
        """See `Run.kind`."""
        return self.runs[0].kind

    @property
    def seeds(self) -> tuple[int, ...]:
        """In ascending order."""
        return tuple(run.seed for run in self.runs)

    @property
    def diverged(self) -> bool:
        """Whether its runs diverged: those that did and those that did not are two cells."""
        return bool(self.runs[0].summary["diverged"])

    @property
    def accuracy(self) -> float:
        """Mean top-1 under its protocol, a fraction."""
        return fmean(run.evaluation.top1 for run in self.runs)

    @property
    def personal(self) -> list[float] | None:
        """The same of the clients' own models, by seed; None where they have none."""
        known = [run.evaluation.personal_top1 for run in self.runs if run.evaluation.personal_top1 is not None]
        return known if len(known) == len(self.runs) else None

    @property
    def floor(self) -> float:
        """Mean top-1 of the untrained encoder under the same protocol, a fraction."""
        return fmean(run.evaluation.untrained_top1 for run in self.runs)

    @property
    def top1(self) -> dict[int, float]:
        """Seed -> top-1 under its protocol, a fraction."""
        return {run.seed: run.evaluation.top1 for run in self.runs}

    def mean(self, key: str) -> float:
        """Mean over the seeds of a figure of the summary."""
        return fmean(run.summary[key] for run in self.runs)

    def known_mean(self, key: str) -> float | None:
        """The same of a figure that a run may not have noted: None if one has not."""
        return None if any(run.summary[key] is None for run in self.runs) else self.mean(key)

    def label(self, key: str) -> str:
        """A word of the summary that all its runs share."""
        return str(self.runs[0].summary[key])


def cells(runs: Iterable[Run]) -> list[Cell]:
    """Runs gathered by everything but their seed; of one seed run twice, the newer counts."""
    return [Cell(_one_per_seed(group)) for group in _grouped(runs, _identity)]


def _identity(run: Run) -> list[object]:
    """All but the seed; strategy and SSL method are nothing to an untrained encoder."""
    labels = [label for label in LABELS if run.kind != UNTRAINED or label not in ("strategy", "ssl")]
    return [run.settings, *(run.summary[label] for label in labels)]


def _one_per_seed(runs: Iterable[Run]) -> tuple[Run, ...]:
    newest = {run.seed: run for run in sorted(runs, key=lambda run: str(run.manifest["started"]))}
    return tuple(newest[seed] for seed in sorted(newest))


def comparable(runs: Iterable[Run]) -> list[list[Cell]]:
    """Tables of cells whose accuracies are comparable; see `comparable_key`.

    Cells of another kind than the first of a table are its points of reference: a table of federations also gets
    the centralised and the untrained cells, however many clients it has. Those without such a table make one.
    """
    found, tables = cells(runs), list[list[Cell]]()
    for kind in KINDS:
        alone = []
        for cell in (cell for cell in found if cell.kind == kind):
            hosts = [table for table in tables if table[0].kind != kind and _same_task(cell, table[0])]
            for table in hosts:
                table.append(cell)
            alone += [] if hosts else [cell]
        tables += _grouped(alone, comparable_key)
    return tables


def comparable_key(cell: Cell) -> dict[str, Any]:
    """Data, its partition over the clients, encoder, protocol with settings and data, accounting convention.

    What transforms make of the encoder is what is compared, as strategies are.
    """
    shared = ("data", "encoder.", "evaluation.", "federation.num_clients")
    settings = {key: value for key, value in cell.settings.items() if key.startswith(shared)}
    settings.pop("encoder.transforms", None)
    settings["init"] = cell.settings.get("sources.encoder.init")
    return {**settings, "convention": cell.label("convention")}


def _same_task(one: Cell, other: Cell) -> bool:
    """Whether they are comparable but for what concerns clients."""
    keys = [comparable_key(cell) for cell in (one, other)]
    ours, theirs = ({key: v for key, v in all_.items() if not key.startswith(OF_CLIENTS)} for all_ in keys)
    return ours == theirs


def varying(table: Sequence[Cell]) -> list[str]:
    """Keys in which the cells of a table differ, besides the strategy and the name of the SSL method."""
    flats = [cell.settings for cell in table]
    keys = sorted({key for flat in flats for key in flat})
    keys = [key for key in keys if not key.startswith(("strategy", "sources")) and key != "ssl.name"]
    return [key for key in keys if any(flat.get(key) != flats[0].get(key) for flat in flats)]


def _grouped(items: Iterable[T], key: Callable[[T], object]) -> list[list[T]]:
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(json.dumps(key(item), sort_keys=True), []).append(item)
    return list(groups.values())
