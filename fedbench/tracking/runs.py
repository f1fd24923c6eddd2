"""Finished runs, gathered by what they share: a cell's seeds, and the cells that may stand in one table."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from fedbench.config.load import flat
from fedbench.config.schema import PartitionConfig
from fedbench.conventions import CONVENTIONS
from fedbench.errors import UserError
from fedbench.tracking.run_directory import ERROR, MANIFEST, SUMMARY, RunDirectory

T = TypeVar("T")
NEEDED = {"config", "data_hash", "device", "sources", "started"}
LABELS = ("strategy", "ssl", "protocol", "convention", "memory_source", "diverged")
FIGURES = (
    *("probe/linear_top1", "untrained/linear_top1", "seconds"),
    *("client/flops", "client/peak_memory_bytes", "client/download_bytes", "client/upload_bytes"),
)
ENGINE = ("engine", "workers")  # no bit depends on it
UNFINISHED = "it is not finished"


@dataclass(frozen=True)
class Run:
    """A finished run: the contents of its manifest.json and summary.json, and where they were read."""

    manifest: Mapping[str, Any]
    summary: Mapping[str, Any]
    path: Path | None = None

    @property
    def seed(self) -> int:
        """The seed of all its random streams."""
        return int(self.manifest["config"]["seed"])

    @property
    def settings(self) -> dict[str, Any]:
        """`section.key -> value` of all that can change a result but the seed; data is named by its hash."""
        left_out = ("seed", "tracking", "data.path", "data.partition.file", "accelerator", *ENGINE)
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
    def seeds(self) -> tuple[int, ...]:
        """In ascending order."""
        return tuple(run.seed for run in self.runs)

    @property
    def diverged(self) -> bool:
        """Whether its runs diverged: those that did and those that did not are two cells."""
        return bool(self.runs[0].summary["diverged"])

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
    runs, left_out = gather([folder])
    for path, reason in left_out.items():
        if not reason.startswith(UNFINISHED):
            print(f"fedbench: {path} is left out, {reason}", file=sys.stderr)
    return runs


def gather(paths: Iterable[Path]) -> tuple[list[Run], dict[Path, str]]:
    """The finished runs among run directories and folders of them, and the reason for each that is left out.

    Raises:
        UserError: for a path that is no folder, or cannot be read.
    """
    directories = [directory for path in paths for directory in _run_directories(path)]
    found = {path: _read(path) for path in dict.fromkeys(directories)}
    left_out = {path: run for path, run in found.items() if isinstance(run, str)}
    return [run for run in found.values() if isinstance(run, Run)], left_out


def _run_directories(path: Path) -> list[Path]:
    """`path` if it is a run directory, else those directly under it, by name."""
    if not path.is_dir():
        raise UserError(f"{str(path)!r} is not a folder; allowed: a run directory, or a folder with some in it")
    try:
        found = (
            [path] if _holds_a_run(path) else [child for child in sorted(path.iterdir()) if _holds_a_run(child)]
        )
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    return [directory.resolve() for directory in found]


def _holds_a_run(path: Path) -> bool:
    try:
        return (path / MANIFEST).is_file()
    except OSError:  # a locked folder: `_read` says so
        return True


def _read(path: Path) -> Run | str:
    """A run, or why there is none."""
    try:
        if not (path / SUMMARY).is_file():
            return UNFINISHED + _why_it_stopped(path)
        run = Run(RunDirectory(path).manifest(), RunDirectory(path).summary(), path)
        assert run.manifest.keys() >= NEEDED
        assert run.summary.keys() >= {*LABELS}
        assert run.summary["convention"] in CONVENTIONS
        assert all(isinstance(run.summary[figure], int | float) for figure in FIGURES)
        describe(Cell((run,)))
        assert isinstance(run.seed, int)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError):
        return "its files are not those of a run"
    return run


def _why_it_stopped(path: Path) -> str:
    """The last line of its error, if it left one."""
    lines = (path / ERROR).read_text(encoding="utf-8").splitlines() if (path / ERROR).is_file() else []
    return f": {lines[-1]}" if lines else ""


def cells(runs: Iterable[Run]) -> list[Cell]:
    """Runs gathered by everything but their seed; of one seed run twice, the newer counts."""
    groups = _grouped(runs, lambda run: [run.settings, *(run.summary[label] for label in LABELS)])
    return [Cell(_one_per_seed(group)) for group in groups]


def _one_per_seed(runs: Iterable[Run]) -> tuple[Run, ...]:
    newest = {run.seed: run for run in sorted(runs, key=lambda run: str(run.manifest["started"]))}
    return tuple(newest[seed] for seed in sorted(newest))


def comparable(runs: Iterable[Run]) -> list[list[Cell]]:
    """Cells gathered by what makes accuracies comparable: see `comparable_key`."""
    return _grouped(cells(runs), comparable_key)


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
    data, encoder = config["data"], config["encoder"]
    split = PartitionConfig.model_validate(data["partition"])
    patch = f", patch {encoder['patch_size']}, width {encoder['width']}" if encoder["name"] == "vit" else ""
    return (
        f"{data['name']} on {config['federation']['num_clients']} clients ({split.words}), "
        f"{encoder['name']} ({encoder['image_size']} px{patch}, {encoder['depth']} blocks), "
        f"{cell.label('protocol')} probe"
    )


def _grouped(items: Iterable[T], key: Callable[[T], object]) -> list[list[T]]:
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(json.dumps(key(item), sort_keys=True), []).append(item)
    return list(groups.values())
