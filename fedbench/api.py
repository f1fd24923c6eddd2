"""fedbench from Python: what the commands do, as functions. See `fedbench` for an example of each."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from fedbench import pretrained
from fedbench.config import Config, load_config, resolve_file
from fedbench.config.load import read_yaml
from fedbench.errors import UserError
from fedbench.federation.experiment import prepare
from fedbench.files import user_path
from fedbench.pretrained import PretrainedEncoder
from fedbench.profiling import Profile
from fedbench.profiling import profile as profile_config
from fedbench.reporting.ranking import Row, leaderboard
from fedbench.running.cell import Outcome, cell_name, cell_rounds, run_cell
from fedbench.running.isolation import in_turns, told
from fedbench.tracking.run_directory import RunDirectory
from fedbench.tracking.runs import read_runs

if TYPE_CHECKING:
    import pandas
    import pyarrow

Configuration = str | Path | Mapping[str, Any] | Config | None


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        path: its directory.
        state: `diverged` where the last round left no finite loss or no usable update.
    """

    path: Path
    state: Literal["finished", "diverged"]

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Every figure of `summary.json`, in base units: FLOPs, bytes, seconds, fractions."""
        return RunDirectory(self.path).summary()

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What was run, by which code, on which machine."""
        return RunDirectory(self.path).manifest()

    @cached_property
    def rounds(self) -> list[dict[str, Any]]:
        """One record per round, as `federate` yields them."""
        return RunDirectory(self.path).rounds()

    @cached_property
    def clients(self) -> "pyarrow.Table":
        """A row for each client of each round: what became of it, its loss, its costs; `.to_pandas()` if you like.

        Raises:
            UserError: `clients.arrow` is damaged or missing.
        """
        return RunDirectory(self.path).clients()

    @property
    def top1(self) -> float:
        """Accuracy under the first protocol, a fraction of 1."""
        protocol = self.manifest["config"]["evaluation"]["protocols"][0]
        return float(self.summary[f"probe/{protocol}_top1"])

    @property
    def untrained_top1(self) -> float:
        """The floor: the same protocol on the untrained encoder, a fraction of 1."""
        protocol = self.manifest["config"]["evaluation"]["protocols"][0]
        return float(self.summary[f"untrained/{protocol}_top1"])

    def encoder(self) -> PretrainedEncoder:
        """The trained encoder; see `load_encoder`."""
        return load_encoder(self.path, plugins=True)


class Results(Sequence[Row]):
    """Rows of the leaderboard, best first in each table (`Row.table`)."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = list(rows)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self._rows[index]

    def to_pandas(self) -> "pandas.DataFrame":
        """A line for each row, a column for each field of `Row`, in base units.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UserError("to_pandas: pandas is not installed; `pip install pandas` does it") from None
        return pandas.DataFrame([asdict(row) for row in self._rows])


def run(config: Configuration = None, out: str | Path = "runs", **sections: Any) -> Result:
    """Train and evaluate one cell, or what is left of it; at once where it is finished.

    Args:
        config: a preset's name, a YAML file, a mapping as in one, a `Config`; None for the defaults.
        out: folder of the run directories.
        sections: what is set on top of it: `seed=1`, `federation={"rounds": 8}`, `strategy="lw_fedssl@v3"`.

    Raises:
        UserError: naming the key, its value and what is allowed; or another process runs this cell.
    """
    whole, folder = _config(config, sections), user_path(out)
    with told(whole.seed):
        experiment = prepare(whole)
        return _result(run_cell(experiment, folder), folder / cell_name(experiment))


def federate(
    config: Configuration = None, out: str | Path = "runs", **sections: Any
) -> Generator[dict[str, Any], None, Result]:
    """The same, round by round: yields the record of each round (a line of `rounds.jsonl`) when it is on the disk.

    Rounds of before a stop are not yielded again. Left before its end it can be resumed, by this or by `run`, and
    ends with the same bits. The generator's value is the `Result`.

    Raises:
        UserError: as `run`.
    """
    whole, folder = _config(config, sections), user_path(out)
    result = yield from in_turns(whole.seed, lambda: _federate(whole, folder))
    return result


def profile(config: Configuration = None, samples: int | None = None, **sections: Any) -> Profile:
    """What a configuration will cost: FLOPs, peak memory and bytes by stage, without data or training.

    Args:
        samples: images of every client, where the data do not say; None: one batch is assumed then.

    Raises:
        UserError: the configuration cannot be run.
    """
    return profile_config(_config(config, sections), samples)


def results(folder: str | Path = "runs") -> Results:
    """The leaderboard's rows of all finished runs directly in `folder`: means over seeds, costs in base units.

    Raises:
        UserError: it is no folder.
    """
    return Results(leaderboard(read_runs(user_path(folder))))


def load_encoder(path: str | Path, plugins: bool = False) -> PretrainedEncoder:
    """The encoder of a finished run as a torch module in eval mode: images in, features out.

    `path` is the run directory, or the encoder.safetensors in it. The module takes images (B, C, H, W) of the
    run's size, uint8 or floating point in [0, 1], normalises them itself, and returns (B, feature_dim). With
    `plugins`, code is executed that the run names by a file or a dotted path.

    Raises:
        UserError: where there is no finished run, its files are damaged, or it names code, without `plugins`.
    """
    return pretrained.load_encoder(path, plugins)


def _config(config: Configuration, sections: Mapping[str, Any]) -> Config:
    if isinstance(config, Config):
        return load_config(config.model_dump(mode="json"), sections) if sections else config
    if isinstance(config, str | Path):
        config = read_yaml(resolve_file(str(config), "presets"))
    return load_config(config or {}, sections)


def _federate(config: Config, folder: Path) -> Generator[dict[str, Any], None, Result]:
    experiment = prepare(config)
    outcome = yield from cell_rounds(experiment, folder)
    return _result(outcome, folder / cell_name(experiment))


def _result(outcome: Outcome, path: Path) -> Result:
    if outcome.state not in ("finished", "diverged"):
        raise UserError(f"{path} {outcome.words}; allowed: to wait for it, or another `out`")
    return Result(path, "diverged" if outcome.state == "diverged" else "finished")
