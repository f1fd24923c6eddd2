"""Finished runs, gathered by what they share: a cell's seeds, and the cells that may stand in one table."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from fedbench.config.load import flat
from fedbench.errors import UserError
from fedbench.tracking.run_directory import MANIFEST, SUMMARY, RunDirectory

T = TypeVar("T")
NEEDED = {"config", "data_hash", "device", "sources", "started"}


@dataclass(frozen=True)
class Run:
    """A finished run: the contents of its manifest.json and summary.json."""

    manifest: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """The seed of all its random streams."""
        return int(self.manifest["config"]["seed"])

    @property
    def settings(self) -> dict[str, Any]:
        """`section.key -> value` of all that can change a result but the seed; data is named by its hash."""
        left_out = ("seed", "tracking", "data.path", "accelerator")
        settings = flat(self.manifest["config"])
        named = {key: self.manifest[key] for key in ("data_hash", "device", "sources")}
        return {key: value for key, value in settings.items() if not key.startswith(left_out)} | flat(named)


@dataclass(frozen=True)
class Cell:
    """Runs that differ in nothing but the seed, in order of seed."""

    runs: tuple[Run, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """See `Run.settings`."""
        return self.runs[0].settings

    @property
    def accuracy(self) -> float:
        """Mean top-1 of the linear probe, a fraction."""
        return self.mean("probe/linear_top1")

    def mean(self, key: str) -> float:
        """Mean over the seeds of a figure of the summary."""
        return fmean(run.summary[key] for run in self.runs)

    def label(self, key: str) -> str:
        """A word of the summary that all its runs share."""
        return str(self.runs[0].summary[key])


def read_runs(folder: Path) -> list[Run]:
    """The finished run directories directly under `folder`, by name; `UserError` if it is no folder."""
    if not folder.is_dir():
        raise UserError(f"out: {str(folder)!r} is not a folder; allowed: one with run directories in it")
    finished = [path for path in sorted(folder.iterdir()) if _is_finished(path)]
    return [run for run in map(_read, finished) if run is not None]


def _read(path: Path) -> Run | None:
    """A run, or None with a warning where its files are not a run's."""
    try:
        run = Run(RunDirectory(path).manifest(), RunDirectory(path).summary())
        assert run.manifest.keys() >= NEEDED
        assert isinstance(run.summary["probe/linear_top1"], float)
    except (AssertionError, KeyError, TypeError, ValueError):
        print(f"fedbench: {path} is left out, its files are not those of a run", file=sys.stderr)
        return None
    return run


def _is_finished(path: Path) -> bool:
    return (path / MANIFEST).is_file() and (path / SUMMARY).is_file()


def cells(runs: Iterable[Run]) -> list[Cell]:
    """Runs gathered by everything but their seed; of one seed run twice, the newer counts."""
    labels = ("strategy", "ssl", "protocol", "convention", "memory_source", "diverged")
    groups = _gather(runs, lambda run: [run.settings, *(run.summary[label] for label in labels)])
    return [Cell(_one_per_seed(group)) for group in groups]


def _one_per_seed(runs: Iterable[Run]) -> tuple[Run, ...]:
    newest = {run.seed: run for run in sorted(runs, key=lambda run: str(run.manifest["started"]))}
    return tuple(newest[seed] for seed in sorted(newest))


def comparable(runs: Iterable[Run]) -> list[list[Cell]]:
    """Cells gathered by what makes accuracies comparable: see `comparable_key`."""
    return _gather(cells(runs), comparable_key)


def comparable_key(cell: Cell) -> dict[str, Any]:
    """Data, its partition over the clients, encoder, probe, protocol and accounting convention."""
    shared = ("data", "encoder.", "probe.", "federation.num_clients")
    settings = {key: value for key, value in cell.settings.items() if key.startswith(shared)}
    return {**settings, "protocol": cell.label("protocol"), "convention": cell.label("convention")}


def varying(table: Sequence[Cell]) -> list[str]:
    """Keys in which the cells of a table differ, besides the strategy and the name of the SSL method."""
    flats = [cell.settings for cell in table]
    keys = sorted({key for flat in flats for key in flat})
    keys = [key for key in keys if not key.startswith(("strategy", "sources")) and key != "ssl.name"]
    return [key for key in keys if any(flat.get(key) != flats[0].get(key) for flat in flats)]


def describe(cell: Cell) -> str:
    """The title of a table: data, federation, encoder and protocol in words."""
    config = cell.runs[0].manifest["config"]
    data, encoder, split = config["data"], config["encoder"], config["data"]["partition"]
    beta = f" {split['beta']:g}" if split["name"] == "dirichlet" else ""
    patch = f", patch {encoder['patch_size']}, width {encoder['width']}" if encoder["name"] == "vit" else ""
    return (
        f"{data['name']} on {config['federation']['num_clients']} clients ({split['name']}{beta}), "
        f"{encoder['name']} ({encoder['image_size']} px{patch}, {encoder['depth']} blocks), "
        f"{cell.label('protocol')} probe"
    )


def _gather(items: Iterable[T], key: Callable[[T], object]) -> list[list[T]]:
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(json.dumps(key(item), sort_keys=True), []).append(item)
    return list(groups.values())
