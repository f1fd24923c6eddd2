"""Worker processes: the same bits, whoever trains, and whoever dies."""

import os
import signal
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from exhaustive import exhaustive

from fedbench.config import Config, config_hash
from fedbench.encoders.tensor_groups import StateDict
from fedbench.errors import UserError
from fedbench.federation.engines.effort import Effort, Patience
from fedbench.federation.engines.processes import Processes
from fedbench.federation.experiment import prepare
from fedbench.federation.federation import Federation
from fedbench.running.cells import run_cells

Tiny = Callable[..., Config]
PROCESSES = {"engine": "processes", "workers": 2}
UNRELIABLE = {"num_clients": 5, "participants": 3, "dropout_before": 0.2, "dropout_after": 0.2, "late_clients": 1}
CASES: list[Any] = [
    exhaustive({"strategy": "lw_fedssl@v3"}),
    exhaustive({"strategy": {"name": "prog_fedssl", "moon": True}}),
    exhaustive(
        {"strategy": {"name": "lw_fedssl@v4", "depth_dropout": {"max_depth": 2}}, "federation": UNRELIABLE}
    ),
    {"strategy": {"name": "fedssl", "proximal": {"mu": 0.1}}, "federation": {"client_memory": "none"}},
]
PLUGIN = '''
"""FedSSL in which something happens to client training."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from fedbench.errors import UserError
from fedbench.federation import GrowingStrategy, StagePlan


@dataclass(frozen=True)
class Eventful(GrowingStrategy):
    folder: str = ""
    event: str = "none"

    def plan(self, stage, num_blocks):
        return StagePlan(num_blocks, range(num_blocks), range(num_blocks))

    def num_stages(self, num_blocks):
        return 1

    def local_loss(self, step):
        marks = Path(self.folder)
        if self.event == "dies twice" and len(list(marks.glob("mark*"))) < 2:
            (marks / f"mark{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.event == "hangs":
            time.sleep(600)
        if self.event == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.event == "user's fault":
            raise UserError("tau=0; allowed: above 0")
        if self.event == "raises":
            raise ZeroDivisionError("by itself")
        return None
'''


def result(config: Config, folder: Path) -> tuple[StateDict, list[dict[str, Any]]]:
    """The final state, and the records without their times."""
    with closing(Federation(prepare(config), folder / "clients")) as federation:
        records = [record.to_dict() for record in federation.rounds()]
    timeless = [{k: v for k, v in record.items() if not k.startswith("seconds")} for record in records]
    return federation.server.state, timeless


def eventful(tiny: Tiny, folder: Path, event: str, **federation: Any) -> Config:
    (folder / "eventful.py").write_text(PLUGIN)
    strategy = {"name": str(folder / "eventful.py"), "folder": str(folder), "event": event}
    return tiny({"strategy": strategy, "federation": {"rounds": 2, **federation}}, **PROCESSES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["strategy"]))
def test_two_processes_end_with_the_bits_of_none(tiny: Tiny, tmp_path: Path, case: dict[str, Any]) -> None:
    alone, alone_records = result(tiny(case), tmp_path / "a")
    shared, shared_records = result(tiny(case, **PROCESSES), tmp_path / "b")
    assert all(torch.equal(alone[key], shared[key]) for key in alone.keys() | shared.keys())
    assert alone_records == shared_records


@pytest.mark.exhaustive
def test_a_worker_that_dies_is_replaced_and_its_client_trained_again(tiny: Tiny, tmp_path: Path) -> None:
    undisturbed, records = result(eventful(tiny, tmp_path, "none"), tmp_path)
    disturbed, again = result(eventful(tiny, tmp_path, "dies twice"), tmp_path)
    assert len(list(tmp_path.glob("mark*"))) >= 2
    assert all(torch.equal(undisturbed[key], disturbed[key]) for key in undisturbed)
    assert deaths(records) == 0
    assert deaths(again) >= 2
    assert [one | {"workers/num_deaths": 0} for one in again] == records


def deaths(records: list[dict[str, Any]]) -> int:
    return sum(record["workers/num_deaths"] for record in records)


@pytest.mark.exhaustive
def test_a_stopped_worker_is_killed_even_where_its_parent_waits_in_the_middle_of_a_payload(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is larger than a pipe."""
    config = tiny(PROCESSES, ssl={"hidden_dim": 512})
    undisturbed, records = result(config, tmp_path / "a")
    with closing(Federation(prepare(config), tmp_path / "b")) as federation:
        rounds = federation.rounds()
        again = [next(rounds).to_dict()]
        assert isinstance(federation.engine, Processes)
        stopped = [remote for remote in federation.engine._remotes if remote.is_ready]  # one, or both
        for remote in stopped:
            assert remote.process.pid is not None
            os.kill(remote.process.pid, signal.SIGSTOP)
        monkeypatch.setattr(Patience, "of", Mock(side_effect=[*[1.0] * len(stopped), *[600.0] * 100]))
        again += [record.to_dict() for record in rounds]
    assert all(torch.equal(undisturbed[key], federation.server.state[key]) for key in undisturbed)
    assert (deaths(again[:1]), deaths(again[1:2]), deaths(again[2:])) == (0, len(stopped), 0)
    timeless = [{k: v for k, v in record.items() if not k.startswith("seconds")} for record in again]
    assert [one | {"workers/num_deaths": 0} for one in timeless] == records


def test_a_worker_has_long_and_the_longer_the_slower_a_visit_was_before(tiny: Tiny) -> None:
    experiment = prepare(tiny())
    small, large = (Mock(client=number) for number in (0, 1))
    experiment = replace(experiment, client_indices=[torch.arange(8), torch.arange(8000)])
    patience = Patience(Effort(experiment))
    flops = {one: patience._flops(one) for one in (small, large)}
    assert 900 < flops[large] / flops[small] <= 1000
    assert patience.of(large) == pytest.approx(600 + 20e-9 * flops[large])
    patience.saw(small, 2.0)
    patience.saw(small, 1.0)
    assert patience.of(large) == pytest.approx(600 + 20 * 2.0 / flops[small] * flops[large])
    fixed = replace(experiment, config=tiny(PROCESSES, federation={"timeout": 5}))
    assert Patience(Effort(fixed)).of(large) == 5.0


@pytest.mark.parametrize(
    ("event", "error", "message"),
    [
        exhaustive("dies", RuntimeError, r"3 worker processes died over client \d, the last with exit code -9"),
        exhaustive(
            "hangs",
            RuntimeError,
            r"3 worker .* the last was killed after 3 s without an answer .federation.timeout",
        ),
        ("user's fault", UserError, "tau=0; allowed: above 0"),
        exhaustive("raises", RuntimeError, "ZeroDivisionError: by itself"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_told_here(
    tiny: Tiny, tmp_path: Path, event: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        result(eventful(tiny, tmp_path, event, **({"timeout": 3} if event == "hangs" else {})), tmp_path)


@pytest.mark.exhaustive
def test_a_worker_refuses_a_plugin_that_is_another_than_its_parents(tiny: Tiny, tmp_path: Path) -> None:
    experiment = replace(prepare(eventful(tiny, tmp_path, "none")), sources={"strategy": "other"})
    with (
        closing(Federation(experiment, tmp_path)) as federation,
        pytest.raises(UserError, match="a plugin's files changed while the run was starting"),
    ):
        next(federation.rounds())


@pytest.mark.exhaustive
def test_no_process_is_left_behind(tiny: Tiny, tmp_path: Path) -> None:
    federation = Federation(prepare(tiny(**PROCESSES)), tmp_path)
    engine = federation.engine
    assert isinstance(engine, Processes)
    next(federation.rounds())
    federation.close()
    assert [remote.process.is_alive() for remote in engine._remotes] == [False, False]


def test_the_engine_is_no_part_of_what_a_run_is(tiny: Tiny) -> None:
    assert config_hash(tiny()) == config_hash(tiny(**PROCESSES))


def test_workers_need_their_engine(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="workers=2 with engine=in_process"):
        tiny(workers=2)
    with pytest.raises(UserError, match="--jobs 2 with engine=processes"):
        run_cells([tiny(**PROCESSES)], tmp_path, jobs=2)
