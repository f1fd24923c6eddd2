"""The run on which faults are injected, what it leaves, and a line of the table."""

import gzip
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_config import TINY

from fedbench.config import Config, load_config
from fedbench.federation.experiment import prepare
from fedbench.running.cell import cell_name
from fedbench.tracking.run_directory import RunDirectory

FEDERATION = {**TINY["federation"], "rounds": 3}  # type: ignore[dict-item]
CHANGES = {"strategy": {"name": "prog_fedssl", "moon": True}, "federation": FEDERATION}
VISITS = 9  # of three clients in three rounds


class Line(NamedTuple):
    """What was injected how often; how often it was survived or told; how often the results were equal."""

    fault: str
    injected: int
    survived: int
    equal: int


def config(**changes: Any) -> Config:
    """Of the run: clients keep something between visits. `changes` are of what makes no other cell of it."""
    return load_config(TINY, {**CHANGES, **changes})


def directory(out: Path) -> RunDirectory:
    """Of that run."""
    return RunDirectory(out / cell_name(prepare(config())))


def result(out: Path) -> tuple[Any, ...]:
    """All that the run leaves, times and deaths of workers aside."""
    run, aside = directory(out), ("seconds", "workers/", "files", "sha256")
    rounds = [{k: v for k, v in one.items() if not k.startswith(aside)} for one in run.rounds()]
    ledger = gzip.decompress((run.path / "ledger.csv.gz").read_bytes())
    summary = {k: v for k, v in run.summary().items() if not k.startswith(aside)}
    clients = run.clients().drop_columns(["seconds", "worker_deaths"]).to_pydict()
    return (run.path / "encoder.safetensors").read_bytes(), rounds, clients, ledger, summary
