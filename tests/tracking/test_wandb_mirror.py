import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any
from unittest.mock import Mock

import pytest
from wandb_log import log_file, recorded, records
from wandb_stand_in import StandIn

from fedbench.config import Config, TrackingConfig
from fedbench.federation.experiment import prepare
from fedbench.running.cell import group_name, identity, run_cell
from fedbench.tracking import wandb_mirror
from fedbench.tracking.run_directory import RunDirectory
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
    assert run["summary"]["run/probe/linear_top1"] == 0.75
    assert "participants" not in run["summary"]
    assert list((tmp_path / "cwd").iterdir()) == []


def a_round(number: int) -> dict[str, Any]:
    """30 bytes down, 4 up and 500 FLOPs, for the first round; twice as much for the next, and so on."""
    costs = {"download_bytes": 30, "upload_bytes": 4, "flops": 500}
    return {"round": number} | {f"all_clients/{key}": (number + 1) * value for key, value in costs.items()}


def test_a_key_is_a_rounds_figure_or_the_runs_or_the_sum_so_far(tmp_path: Path) -> None:
    with WandbMirror(OFFLINE, "cell", {}, tmp_path / "cell") as mirror:
        for number in range(3):
            mirror.log_round(a_round(number), step=number)
        mirror.finish({"all_clients/flops": 3000})
    history = [record["history"]["item"] for record in records(tmp_path / "cell", "history")]
    assert [row["all_clients/flops"] for row in history] == [500, 1000, 1500]
    assert [row["so_far/all_clients/flops"] for row in history] == [500, 1500, 3000]
    assert [row["so_far/all_clients/bytes"] for row in history] == [34, 102, 204]
    assert recorded(tmp_path / "cell")["summary"]["run/all_clients/flops"] == 3000


def test_the_sums_of_a_resumed_run_begin_with_its_first_round(tmp_path: Path, server: StandIn) -> None:
    for rounds in (2, 3):
        with WandbMirror(ONLINE, "c", {}, tmp_path / "c", "id-c") as mirror:
            for number in range(rounds):
                mirror.log_round(a_round(number), step=number)
    rows = [row for _, _, rows in server.history for row in rows]
    assert [row["so_far/all_clients/flops"] for row in rows] == [500, 1500, 3000]


def test_loss_is_drawn_over_flops_and_accuracy_over_bytes(tmp_path: Path) -> None:
    mirror_a_run(OFFLINE, tmp_path / "c")
    metrics = [record["metric"] for record in records(tmp_path / "c", "metric")]
    axes = {metric["glob_name"]: metric["step_metric"] for metric in metrics if "glob_name" in metric}
    assert axes["train/*"] == "so_far/all_clients/flops"
    assert axes["probe/*"] == "so_far/all_clients/bytes"
    assert {metric["name"] for metric in metrics if "name" in metric} == set(axes.values())


@pytest.mark.parametrize(("group", "expected"), [("mine", "mine"), (None, "the cell's")])
def test_the_group_is_that_of_the_configuration_if_it_names_one(
    tmp_path: Path, group: str | None, expected: str
) -> None:
    with WandbMirror(TrackingConfig(group=group), "c", {}, tmp_path / "c", group="the cell's") as mirror:
        mirror.finish({})
    (record,) = records(tmp_path / "c", "run")
    assert record["run"]["run_group"] == expected


@pytest.mark.parametrize("asked", [True, False])
def test_the_encoder_is_an_artifact_only_if_that_is_asked(tmp_path: Path, asked: bool) -> None:
    encoder = tmp_path / "encoder.safetensors"
    encoder.write_bytes(b"weights")
    with WandbMirror(TrackingConfig(artifact=asked), "c", {}, tmp_path / "c", "id-c") as mirror:
        mirror.keep(encoder)
        mirror.finish({})
    kept = [record["artifact"] for record in records(tmp_path / "c", "artifact")]
    assert [(one["name"], one["type"]) for one in kept] == [("encoder-id-c", "model")] * asked
    files = [entry["local_path"] for one in kept for entry in one["manifest"]["contents"]]
    assert files == [str(encoder)] * asked


def test_a_cell_tells_wandb_what_it_is_and_the_group_of_its_seeds(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    for seed in (0, 1):
        tracking = {"wandb": "offline"}
        run_cell(prepare(tiny(tracking=tracking, strategy="lw_fedssl@v4", seed=seed)), tmp_path)
    groups, folders = [], sorted(tmp_path.glob("lw*"))
    for folder in folders:
        (record,) = records(folder, "run")
        groups.append(record["run"]["run_group"])
        told, manifest = record["run"]["config"]["update"], RunDirectory(folder).manifest()
        assert told["strategy_label"] == "lw_fedssl@v4"
        for key in ("commit", "dirty", "data_hash", "fedbench", "libraries"):
            assert told[key] == manifest[key]
        assert told["encoder"] == manifest["config"]["encoder"]
    assert groups[0] == groups[1]
    assert re.fullmatch(r"lw_fedssl@v4-moco_v3-digits-[0-9a-f]{8}", groups[0])
    assert group_name(prepare(tiny(optimizer={"base_lr": 0.5}))) != group_name(prepare(tiny()))


def test_where_a_run_is_shown_is_no_part_of_its_cell(tiny: Callable[..., Config]) -> None:
    shown = tiny(tracking={"wandb": "online", "artifact": True, "group": "g"})
    assert identity(prepare(shown)) == identity(prepare(tiny()))


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
    assert json.loads(server.files["wandb-summary.json"])["run/probe/linear_top1"] == 0.25


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
    assert recorded(tmp_path / "b")["summary"]["run/probe/linear_top1"] == 0.25
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
    assert recorded(tmp_path / "b")["summary"]["run/probe/linear_top1"] == 0.25
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
        assert not run.log.called
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

    def define_metric(self, *_: object, **__: object) -> None:
        """Nothing is written yet."""


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
