"""Runs of earlier versions are read: each `format_N` is the directory of one tiny run, as it was written then."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from forged import rewrite

from fedbench.cli import main
from fedbench.errors import UserError
from fedbench.pretrained import load_encoder
from fedbench.reporting.ranking import leaderboard
from fedbench.running.verify import verify
from fedbench.tracking.noted import FORMAT
from fedbench.tracking.run_directory import FILES, RunDirectory
from fedbench.tracking.runs import gather

KEPT = Path(__file__).parent
NEW = {
    "num_participants",
    "num_lost_before",
    "num_lost_after",
    "train/min_loss",
    "train/max_loss",
    "workers/num_deaths",
}
STATES = ("returned", "lost_before", "lost_after")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(KEPT / "format_2", tmp_path / "run"))


@pytest.mark.parametrize(("number", "files"), [(2, 5), (3, 6)])
def test_a_run_of_a_format_that_vouches_is_whole_and_ranked(tmp_path: Path, number: int, files: int) -> None:
    run = Path(shutil.copytree(KEPT / f"format_{number}", tmp_path / "run"))
    text, right = verify([run], None, {})
    assert right
    assert f"{files} as written" in text
    (row,) = leaderboard(gather([run])[0])
    summary = json.loads((run / "summary.json").read_text())
    assert (row.strategy, row.seeds) == ("fedssl", (0,))
    assert row.top1_mean == summary["probe/linear_top1"]
    assert row.total_flops == summary["total/flops"]
    assert load_encoder(run)(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 8)
    assert len(RunDirectory(run).rounds()) == 2
    assert RunDirectory(run).ledger()[0]["direction"] == "download"
    assert main(["report", str(run), "--out", str(tmp_path / "report")]) == 0


def test_a_run_of_the_first_format_vouches_for_nothing_and_is_ranked(run: Path) -> None:
    manifest = RunDirectory(run).manifest()
    del manifest["format"]
    rewrite(run, "manifest.json", manifest)
    assert FILES not in RunDirectory(run).summary()
    assert len(gather([run])[0]) == 1
    text, right = verify([run], None, {})
    assert right
    assert "of an earlier version, which vouched for none" in text


def test_a_run_of_a_later_format_is_left_out_by_name(run: Path) -> None:
    rewrite(run, "manifest.json", RunDirectory(run).manifest() | {"format": FORMAT + 1})
    runs, left_out = gather([run])
    assert not runs
    assert f"manifest.json: format='{FORMAT + 1}'" in left_out[run]


def test_a_line_of_the_second_format_is_one_of_the_third_and_the_rows_of_its_clients() -> None:
    old, new = (RunDirectory(KEPT / f"format_{number}") for number in (2, 3))
    rows = new.clients().to_pylist()
    for before, line in zip(old.rounds(), new.rounds(), strict=True):
        mine = [row for row in rows if row["round"] == line["round"]]
        by_state = {state: [row["client"] for row in mine if row["state"] == state] for state in STATES}
        rebuilt = {
            **by_state,
            "participants": [row["client"] for row in mine],
            "rejected": {str(row["client"]): row["reason"] for row in mine if row["state"] == "rejected"},
            "train/losses": {str(row["client"]): row["loss"] for row in mine},
            "workers/deaths": {str(row["client"]): row["worker_deaths"] for row in mine if row["worker_deaths"]},
        }
        assert line.keys() - before.keys() == NEW
        kept = {key: value for key, value in line.items() if key not in NEW} | rebuilt
        assert timeless(kept) == timeless(before)


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if not key.startswith("seconds/")}


def test_runs_of_two_formats_are_compared_by_what_both_noted(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", str(run), str(KEPT / "format_3")]) == 0
    assert "Rounds: 2, all equal but for the clock." in capsys.readouterr().out
    line, last = (run / "rounds.jsonl").read_text().splitlines()
    loss = json.loads(last)["train/loss"]
    (run / "rounds.jsonl").write_text(f"{line}\n{last.replace(str(loss), str(loss + 1))}\n")
    assert main(["diff", str(run), str(KEPT / "format_3")]) == 0
    assert "Rounds: the first that differs is 1 (train/loss)." in capsys.readouterr().out


def test_clients_of_a_run_of_the_second_format_are_not_there(run: Path) -> None:
    with pytest.raises(UserError, match=r"clients\.arrow is missing: .* of an earlier version"):
        RunDirectory(run).clients()
