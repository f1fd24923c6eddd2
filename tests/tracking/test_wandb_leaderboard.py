"""The leaderboard in W&B: one run, however often it is written, with the table and the picture of the files."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wandb_log import recorded, records
from wandb_stand_in import StandIn

from fedbench.cli import main
from fedbench.config import Config
from fedbench.errors import UserError
from fedbench.reporting import wandb_leaderboard
from fedbench.reporting.wandb_leaderboard import mirror_leaderboard, tracking_of
from fedbench.running.cells import run_cells
from fedbench.tracking.run_directory import RunDirectory
from fedbench.tracking.runs import read_runs

Fake = Callable[..., RunDirectory]
OFFLINE = {"tracking": {"wandb": "offline"}}
pytestmark = pytest.mark.usefixtures("nobody")


def in_project(project: str, group: str | None = None) -> dict[str, Any]:
    return {"tracking": {"project": project, "group": group}}


@pytest.fixture
def runs(fake_run: Fake, tmp_path: Path) -> Path:
    for seed, top1 in enumerate((0.7, 0.8)):
        fake_run("fedssl", top1, seed=seed, overrides=in_project("p", "g"))
    fake_run("lw_fedssl", 0.6, cost=0.5, overrides=in_project("p", "g"))
    return tmp_path / "runs"


def report(runs: Path, out: Path, *words: str) -> int:
    return main(["report", str(runs), "--out", str(out), "--wandb", *words])


def table_file(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("leaderboard/wandb/*run-*/files/media/table/*.json")
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def test_the_offline_run_holds_the_rows_of_the_report_and_its_picture(runs: Path, tmp_path: Path) -> None:
    assert report(runs, tmp_path / "out", "tracking.wandb=offline") == 0
    run = recorded(tmp_path / "out" / "leaderboard")
    assert (run["project"], run["name"], run["exit_code"]) == ("p", "leaderboard g", 0)
    assert run["config"]["runs"] == sorted(path.name for path in runs.iterdir())
    assert run["summary"]["leaderboard"]["_type"] == "table-file"
    assert run["summary"]["pareto"]["count"] == 1
    (record,) = records(tmp_path / "out" / "leaderboard", "run")
    assert (record["run"]["run_group"], record["run"]["job_type"]) == ("g", "leaderboard")
    table = table_file(tmp_path / "out")
    with (tmp_path / "out" / "report.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert table["columns"] == header
    for line in lines:  # W&B gets the names of run directories, and no path of this machine
        line[header.index("runs")] = line[header.index("runs")].replace("../runs/", "")
    assert [["" if value is None else str(value) for value in row] for row in table["data"]] == lines


def test_a_repeated_report_writes_the_same_run_anew(
    runs: Path, fake_run: Fake, tmp_path: Path, server: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(runs, tmp_path / "a", "tracking.entity=me") == 0
    fake_run("prog_fedssl", 0.75, overrides=in_project("p", "g"))
    assert report(runs, tmp_path / "b", "tracking.entity=me") == 0
    calls = [call for call in server.sent("UpsertBucket") if call["jobType"]]
    assert {(call["project"], call["entity"], call["groupName"]) for call in calls} == {("p", "me", "g")}
    assert len({call["name"] for call in calls}) == 1
    assert [offset for _, offset, _ in server.history] == [0, 0]  # the second in place of the first
    assert not server.sent("RunResumeStatus")
    assert [len(table_file(tmp_path / name)["data"]) for name in "ab"] == [2, 3]
    assert sum("/table/" in name for name in server.files) == 2
    assert list((tmp_path / "cwd").iterdir()) == []
    assert f"leaderboard is at {server.url}/me/p/runs/{calls[0]['name']}" in capsys.readouterr().err


def test_without_a_network_the_report_is_written_and_the_leaderboard_waits(
    runs: Path, tmp_path: Path, server: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    server.shutdown()
    server.server_close()
    assert report(runs, tmp_path / "out") == 0
    assert recorded(tmp_path / "out" / "leaderboard")["summary"]["leaderboard"]["nrows"] == 2
    assert f"wandb sync --include-online {tmp_path}/out/*/wandb/*run-*" in capsys.readouterr().err


def test_a_saved_report_shows_the_table_the_picture_and_the_runs_and_is_saved_once(
    runs: Path, tmp_path: Path, server: StandIn
) -> None:
    pytest.importorskip("wandb_workspaces")
    for _ in range(2):
        assert report(runs, tmp_path / "out") == 0
    (saved,) = server.reports.values()
    blocks = {block["type"]: block for block in json.loads(saved["spec"])["blocks"]}
    assert saved["displayName"] == "fedbench leaderboard g"
    assert "| fedssl " in blocks["markdown-block"]["content"]
    for word in (
        "pareto",
        "train/loss",
        "summary:run/client/upload_bytes",
        "summary:run/total/flops",
        "so_far/all_clients/bytes",
        '"value":"cell"',
        '"value":"g"',
    ):
        assert word in saved["spec"]


def fail(*_: object) -> None:
    raise OSError("gone")


@pytest.mark.parametrize(
    ("name", "replacement", "said"),
    [("save_report", fail, "no saved W&B report: OSError: gone"), ("find_spec", lambda _: None, "pip install")],
)
def test_without_a_saved_report_the_leaderboard_is_there_all_the_same(
    runs: Path,
    tmp_path: Path,
    server: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    replacement: Callable[..., None],
    said: str,
) -> None:
    monkeypatch.setattr(wandb_leaderboard, name, replacement)
    assert report(runs, tmp_path / "out") == 0
    assert said in capsys.readouterr().err
    assert len(server.history) == 1


def test_tables_that_are_not_comparable_have_a_picture_each(fake_run: Fake, tmp_path: Path) -> None:
    fake_run("fedssl", 0.7)
    fake_run("fedssl", 0.7, data_hash="d2")
    runs = read_runs(tmp_path / "runs")
    mirror_leaderboard(runs, tracking_of(runs, OFFLINE), tmp_path)
    summary = recorded(tmp_path / "leaderboard")["summary"]
    assert (summary["pareto"]["count"], summary["leaderboard"]["nrows"]) == (2, 2)


def test_groups_of_a_project_have_a_leaderboard_each(fake_run: Fake, tmp_path: Path) -> None:
    fake_run("fedssl", 0.7)
    runs = read_runs(tmp_path / "runs")
    for group in ("a", "b"):
        mirror_leaderboard(
            runs, tracking_of(runs, {"tracking": {"wandb": "offline", "group": group}}), tmp_path / group
        )
    ids = [records(tmp_path / group / "leaderboard", "run")[0]["run"]["run_id"] for group in ("a", "b")]
    assert ids[0] != ids[1]


def test_runs_of_several_projects_need_one_to_be_named(fake_run: Fake, tmp_path: Path) -> None:
    for seed, project in enumerate(("p", "q")):
        fake_run("fedssl", 0.7, seed=seed, overrides=in_project(project, project))
    runs = read_runs(tmp_path / "runs")
    with pytest.raises(UserError, match=r"projects p, q; add tracking.project=NAME"):
        tracking_of(runs, {})
    tracking = tracking_of(runs, in_project("q"))
    assert (tracking.wandb, tracking.project, tracking.group) == ("online", "q", None)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tracking.project=p"], "tracking.project=p: allowed only with --wandb"),
        (["--wandb", "tracking.projet=p"], "did you mean 'project'"),
        (["--wandb", "tracking.wandb=maybe"], "tracking.wandb"),
    ],
)
def test_bad_words_are_named_before_anything_is_written(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert main(["report", str(runs), "--out", str(tmp_path / "out"), *words]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.exhaustive
def test_a_grid_leaves_its_leaderboard_too(tiny: Callable[..., Config], tmp_path: Path) -> None:
    tracking = {"wandb": "offline", "project": "p"}
    run_cells([tiny(tracking=tracking, strategy=name) for name in ("fedssl", "lw_fedssl")], tmp_path)
    assert recorded(tmp_path / "leaderboard")["project"] == "p"
    assert len(table_file(tmp_path)["data"]) == 2
