import json
import subprocess
import sys
import time
from pathlib import Path
from threading import Event
from unittest.mock import Mock

import pytest
from wandb_log import log_file, recorded, records
from wandb_stand_in import StandIn

from fedbench.config import TrackingConfig
from fedbench.tracking import wandb_mirror
from fedbench.tracking.wandb_mirror import WandbMirror

pytestmark = pytest.mark.usefixtures("nobody")
ONLINE = TrackingConfig(wandb="online", project="p", entity="e", group="g", tags=("t",))
OFFLINE = TrackingConfig(wandb="offline", project="p", group="g", tags=("t",))


def test_an_offline_run_holds_configuration_last_round_and_summary(tmp_path: Path) -> None:
    with WandbMirror(OFFLINE, "cell", {"seed": 3}, tmp_path / "cell") as mirror:
        for number in range(3):
            record = {"round": number, "train/loss": 2.0 - number, "participants": [0, 1], "note": "text"}
            mirror.log_round(record, step=number)
        mirror.finish({"probe/linear_top1": 0.75, "strategy": "fedssl"})
    run = recorded(tmp_path / "cell")
    assert (run["name"], run["project"], run["config"]) == ("cell", "p", {"seed": 3})
    assert (run["step"], run["state"], run["exit_code"]) == (2, "finished", 0)
    assert run["summary"]["train/loss"] == 0.0
    assert run["summary"]["probe/linear_top1"] == 0.75
    assert "participants" not in run["summary"]
    assert list((tmp_path / "cwd").iterdir()) == []


def test_a_cell_that_fails_is_recorded_as_failed(tmp_path: Path) -> None:
    def fail() -> None:
        with WandbMirror(OFFLINE, "cell", {}, tmp_path / "cell") as mirror:
            mirror.log_round({"round": 0}, step=0)
            raise RuntimeError("the run's own")

    with pytest.raises(RuntimeError, match="the run's own"):
        fail()
    assert recorded(tmp_path / "cell")["exit_code"] == 1


def test_two_cells_open_at_once_are_two_runs(tmp_path: Path) -> None:
    with (
        WandbMirror(OFFLINE, "first-cell", {}, tmp_path / "one") as one,
        WandbMirror(OFFLINE, "second-cell", {}, tmp_path / "two") as two,
    ):
        one.finish({})
        two.finish({})
    assert b"first-cell" in log_file(tmp_path / "one").read_bytes()
    assert b"second-cell" in log_file(tmp_path / "two").read_bytes()


def test_a_disabled_mirror_writes_nothing_and_does_not_import_wandb(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fedbench.config import TrackingConfig\n"
        "from fedbench.tracking.wandb_mirror import WandbMirror\n"
        f"folder = Path({str(tmp_path / 'cell')!r})\n"
        "with WandbMirror(TrackingConfig(wandb='disabled'), 'cell', {}, folder) as m:\n"
        "    m.log_round({'round': 0}, step=0); m.finish({})\n"
        "assert 'wandb' not in sys.modules"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
    assert not (tmp_path / "cell").exists()


def complaints(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("fedbench:")]


def mirror_a_run(config: TrackingConfig, folder: Path) -> None:
    with WandbMirror(config, folder.name, {"seed": 3}, folder, f"id-{folder.name}") as mirror:
        for number in range(3):
            mirror.log_round({"round": number, "train/loss": 2.0 - number}, step=number)
        mirror.finish({"probe/linear_top1": 0.25})


def test_a_run_belongs_to_the_project_entity_group_and_tags_of_its_configuration(tmp_path: Path) -> None:
    mirror_a_run(TrackingConfig(wandb="offline", project="p", entity="e", group="g", tags=("t",)), tmp_path / "c")
    (record,) = records(tmp_path / "c", "run")
    run = record["run"]
    assert (run["project"], run["entity"], run["run_group"], run["tags"]) == ("p", "e", "g", ["t"])
    assert (run["run_id"], run["job_type"]) == ("id-c", "cell")


def test_an_online_run_arrives_with_configuration_rounds_and_summary(tmp_path: Path, server: StandIn) -> None:
    mirror_a_run(ONLINE, tmp_path / "c")
    run = server.sent("UpsertBucket")[0]
    assert (run["project"], run["entity"], run["groupName"], run["tags"]) == ("p", "e", "g", ["t"])
    assert (run["name"], run["displayName"]) == ("id-c", "c")
    assert (tmp_path / "c" / "wandb" / "address.txt").read_text() == f"{server.url}/me/p/runs/id-c\n"
    assert json.loads(run["config"])["seed"] == {"value": 3}
    rows = [row for _, _, rows in server.history for row in rows]
    assert [(row["_step"], row["train/loss"]) for row in rows] == [(0, 2.0), (1, 1.0), (2, 0.0)]
    assert json.loads(server.files["wandb-summary.json"])["probe/linear_top1"] == 0.25


def test_a_resumed_run_gets_the_rounds_that_the_server_has_not_and_each_once(
    tmp_path: Path, server: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    def go_on(rounds: int) -> None:
        with WandbMirror(ONLINE, "c", {}, tmp_path / "c", "id-c") as mirror:
            for number in range(rounds):
                mirror.log_round({"round": number}, step=number)

    go_on(2)
    go_on(5)  # all from the first on, as after a stop
    assert [(offset, [row["_step"] for row in rows]) for _, offset, rows in server.history] == [
        (0, [0, 1]),
        (2, [2, 3, 4]),
    ]
    assert "will be ignored" not in capsys.readouterr().err


def test_an_online_run_says_nothing_of_this_machine(tmp_path: Path, server: StandIn) -> None:
    mirror_a_run(ONLINE, tmp_path / "c")
    sent = json.dumps(server.operations) + repr(server.files)
    assert not any(path in sent for path in (sys.prefix, str(tmp_path), str(Path(__file__).parents[2])))
    assert [call["host"] for call in server.sent("UpsertBucket")] == [None, None]
    assert server.sent("UpsertBucket")[0]["program"] == "fedbench"  # not the path of this installation


def test_online_without_a_key_goes_offline_with_one_line(
    tmp_path: Path, server: StandIn, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    for name in ("a", "b"):
        mirror_a_run(ONLINE, tmp_path / name)
    assert recorded(tmp_path / "b")["summary"]["probe/linear_top1"] == 0.25
    (line,) = complaints(capsys)
    assert "no API key" in line
    assert f"wandb sync --include-online {tmp_path}/*/wandb/*run-*" in line


def test_online_without_a_network_goes_offline_at_once_and_once(
    tmp_path: Path, server: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    server.shutdown()
    server.server_close()
    start = time.perf_counter()
    for name in ("a", "b"):
        mirror_a_run(ONLINE, tmp_path / name)
    assert time.perf_counter() - start < 8
    assert recorded(tmp_path / "b")["summary"]["probe/linear_top1"] == 0.25
    (line,) = complaints(capsys)
    assert f"{server.url} cannot be reached" in line


def test_a_server_that_refuses_the_run_leaves_it_offline_under_the_same_id(
    tmp_path: Path, server: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    server.refuses = True
    for name in ("a", "b"):
        mirror_a_run(ONLINE, tmp_path / name)
    assert [records(tmp_path / name, "run")[0]["run"]["run_id"] for name in ("a", "b")] == ["id-a", "id-b"]
    (line,) = complaints(capsys)
    assert "W&B goes offline" in line


def test_a_network_that_goes_away_costs_one_timeout_and_wandb_sync_uploads_the_rest(
    tmp_path: Path, server: StandIn, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_mirror, "FINISH_TIMEOUT_S", 2)
    with WandbMirror(ONLINE, "a", {}, tmp_path / "a", "id-a") as mirror:
        assert mirror.place
        server.away = True
        mirror.log_round({"round": 0}, step=0)
        mirror.finish({})
    mirror_a_run(ONLINE, tmp_path / "b")
    (line,) = complaints(capsys)
    assert "more than 2 s" in line
    server.away = False
    command = line[line.index("wandb sync") :]
    subprocess.run(f"{sys.executable} -m {command}", shell=True, check=True, capture_output=True)
    assert {run for run, _, _ in server.history} == {"id-a", "id-b"}


def test_training_does_not_wait_for_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    answers, run = Event(), Mock(starting_step=0)
    monkeypatch.setattr(wandb, "init", lambda **_: answers.wait(60) and run)
    with WandbMirror(OFFLINE, "cell", {}, tmp_path / "cell") as mirror:
        for number in range(3):
            mirror.log_round({"round": number}, step=number)
        assert not run.method_calls
        answers.set()
        mirror.finish({})
        assert [call.kwargs["step"] for call in run.log.call_args_list] == [0, 1, 2]
        run.finish.assert_called_once_with(exit_code=0)


class Broken:
    """A W&B run whose every call fails; counts the calls."""

    starting_step = 0

    def __init__(self) -> None:
        self.calls = 0

    def log(self, *_: object, **__: object) -> None:
        self.calls += 1
        raise OSError("disk full")

    finish = log


def test_an_exception_in_wandb_is_told_once_and_ends_the_mirror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    broken = Broken()
    monkeypatch.setattr(wandb, "init", lambda **_: broken)
    with WandbMirror(OFFLINE, "cell", {}, tmp_path / "cell") as mirror:
        for number in range(3):
            mirror.log_round({"round": number}, step=number)
        mirror.finish({})
    assert broken.calls == 1
    assert capsys.readouterr().err.count("disk full") == 1
