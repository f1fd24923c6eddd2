"""`reproduce`: a committed row runs again, and every figure is compared."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_config import TINY

from fedbench.cli import main
from fedbench.running.reproduce import compare

Committed = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Committed:
    """A file of results of two strategies and two seeds, and what it holds."""
    folder = tmp_path_factory.mktemp("results")
    grid = {"base": TINY, "axes": {"strategy": ["fedssl", "lw_fedssl@v3"], "seed": [0, 1]}}
    (folder / "grid.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(grid))))
    runs, file = str(folder / "runs"), folder / "tiny.json"
    assert main(["run", "--grid", str(folder / "grid.yaml"), "--out", runs]) == 0
    assert not main(["report", runs, "--out", str(folder / "report"), "--results", str(file)])
    return file, json.loads(file.read_text())


@pytest.mark.exhaustive
@pytest.mark.costs
def test_a_committed_row_is_reproduced_bit_for_bit_by_the_same_kernels(
    committed: Committed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, content = committed
    for row in content["rows"]:
        words = ["reproduce", str(file), "--row", row["name"], "--seed", "1", "--out", str(tmp_path)]
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert "every bit must be equal" in shown
        assert "encoder_sha256" in shown
        assert shown.rstrip().endswith("REPRODUCED")
        assert "NOT" not in shown


@pytest.mark.costs
@pytest.mark.parametrize("figure", ["top1", "untrained_top1", "server/flops", "client/upload_bytes"])
def test_a_figure_that_was_changed_is_not_reproduced(
    committed: Committed, tmp_path: Path, capsys: pytest.CaptureFixture[str], figure: str
) -> None:
    content = json.loads(json.dumps(committed[1]))
    (row,) = [row for row in content["rows"] if row["name"].startswith("lw_fedssl")]
    row["runs"][0]["figures"][figure] += 1e-6
    file = tmp_path / "changed.json"
    file.write_text(json.dumps(content))
    assert main(["reproduce", str(file), "--row", row["name"], "--out", str(committed[0].parent / "again")]) == 1
    shown = capsys.readouterr().out
    assert "NOT REPRODUCED" in shown
    assert next(line for line in shown.splitlines() if "NOT EQUAL" in line).startswith(f"| {figure}")


def test_other_kernels_may_move_an_accuracy_within_the_spread_and_no_cost(committed: Committed) -> None:
    runs = json.loads(json.dumps(committed[1]["rows"][0]["runs"]))
    for run, top1 in zip(runs, (0.50, 0.54), strict=True):
        run["figures"]["top1"] = top1  # a standard deviation of 0.0283
    now = json.loads(json.dumps(runs[0])) | {"kernels": "another kind"}
    for top1, right in ((0.55, True), (0.56, False), (0.45, True), (0.44, False)):
        now["figures"]["top1"] = top1
        assert {line.figure: line.right for line in compare(runs[0], now, runs)}["top1"] is right
    now["figures"]["client/flops"] += 1
    assert not {line.figure: line.right for line in compare(runs[0], now, runs)}["client/flops"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--row", "7"], "--row 7: no row of"),
        (["--seed", "9"], "--seed 9: not in row"),
        (["optimizer.base_lr=1"], "optimizer.base_lr would make it another cell"),
    ],
)
def test_what_is_not_committed_cannot_be_reproduced(
    committed: Committed, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert main(["reproduce", str(committed[0]), *words, "--out", str(tmp_path)]) == 2
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_without_results_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text("[]")
    assert main(["reproduce", str(tmp_path / "x.json"), "--out", str(tmp_path / "out")]) == 2
    assert "holds no results" in capsys.readouterr().err
