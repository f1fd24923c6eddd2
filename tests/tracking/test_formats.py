"""Runs of earlier versions can be read: `format_2` is the directory of a tiny run, as it was first written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from forged import rewrite

from fedbench.cli import main
from fedbench.pretrained import load_encoder
from fedbench.reporting.ranking import leaderboard
from fedbench.running.verify import verify
from fedbench.tracking.noted import FORMAT
from fedbench.tracking.run_directory import FILES, RunDirectory
from fedbench.tracking.runs import gather

KEPT = Path(__file__).parent / "format_2"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(KEPT, tmp_path / "run"))


def test_a_run_of_the_second_format_is_whole_and_ranked(run: Path, tmp_path: Path) -> None:
    text, right = verify([run], None, {})
    assert right
    assert "5 as written" in text
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
