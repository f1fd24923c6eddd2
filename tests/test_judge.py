"""`evaluate`: finished runs judged again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedbench.cli import main
from fedbench.config import Config
from fedbench.federation.experiment import prepare
from fedbench.reporting.leaderboard import leaderboard, render
from fedbench.running.cell import cell_name, run_cell
from fedbench.tracking.runs import gather

Tiny = Callable[..., Config]
BOTH = {"protocols": ["linear", "knn", "few_label_10"]}


@pytest.fixture
def run(tiny: Tiny, tmp_path: Path) -> Path:
    run_cell(prepare(tiny()), tmp_path / "runs")
    return tmp_path / "runs" / cell_name(prepare(tiny()))


def written(run: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(run.glob("evaluation-*.json"))]


@pytest.fixture
def other_data(tmp_path: Path) -> Path:
    """Forty images of two classes, of another size and with three channels."""
    labels = np.arange(40) % 2
    images = np.random.default_rng(0).integers(0, 99, (40, 12, 12, 3)) + 150 * labels[:, None, None, None]
    np.savez(tmp_path / "shades.npz", images=images.astype(np.uint8), labels=labels)
    return tmp_path / "shades.npz"


def test_a_finished_run_judged_again_has_the_figures_of_one_that_was_asked_to(
    tiny: Tiny, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = prepare(tiny(evaluation=BOTH))
    run_cell(asked, tmp_path / "asked")
    summary = json.loads((tmp_path / "asked" / cell_name(asked) / "summary.json").read_text())
    before = (run / "summary.json").read_bytes()
    assert main(["evaluate", str(run), "--protocol", "linear,knn,few_label_10"]) == 0
    figures = {key: value for content in written(run) for key, value in content["figures"].items()}
    assert figures == {key: value for key, value in summary.items() if key.startswith(("probe/", "untrained/"))}
    assert (run / "summary.json").read_bytes() == before
    assert f"{100 * figures['probe/knn_top1']:.1f}" in capsys.readouterr().out


def test_what_was_added_stands_in_a_table_of_its_own(run: Path) -> None:
    main(["evaluate", str(run), "--protocol", "knn,linear"])
    main(["evaluate", str(run), "--protocol", "knn", "evaluation.knn.k=3"])
    rows = leaderboard(gather([run])[0])
    tables = [(row.protocol, row.protocol_settings) for row in rows]
    assert len(set(tables)) == len({row.table for row in rows}) == len(rows) == 3
    assert ("knn", "k=3 temperature=0.07") in tables


def test_retrieval_is_judged_between_two_towers_and_refused_without(
    tiny: Tiny, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--protocol", "retrieval"]) == 2
    assert "retrieval is between two towers, and the encoder has one" in capsys.readouterr().err
    towers = prepare(tiny({"encoder": {"transforms": ["two_towers"]}}, ssl="clip", federation={"rounds": 1}))
    run_cell(towers, tmp_path / "towers")
    place = tmp_path / "towers" / cell_name(towers)
    assert main(["evaluate", str(place), "--protocol", "retrieval"]) == 0
    (content,) = written(place)
    own = [
        content["figures"][f"probe/retrieval_{name}"] for name in ("top1", "first_to_second", "second_to_first")
    ]
    assert own[0] == pytest.approx((own[1] + own[2]) / 2)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "| retrieval " in line]
    assert [cell.strip() for cell in line.split("|")][4:7] == [f"{100 * own[0]:.1f}", "-", "-"]
    (row,) = [row for row in leaderboard(gather([place])[0]) if row.protocol == "retrieval"]
    assert row.top1_mean == own[0]
    assert "no label is read. Mean" in " ".join(render([row]).split())


def test_other_data_are_named_and_never_mixed(run: Path, other_data: Path) -> None:
    words = ["evaluate", str(run), "--protocol", "knn", "--data", "name=npz", f"path={other_data}"]
    assert main(words) == 0
    assert main(["evaluate", str(run), "--protocol", "knn"]) == 0
    assert {content["data_hash"] for content in written(run)} >= {json.loads(run_hash(run))}
    assert len({content["data_hash"] for content in written(run)}) == 2
    rows = [row for row in leaderboard(gather([run])[0]) if row.protocol == "knn"]
    assert len({row.table for row in rows}) == 2
    assert sum(row.title.endswith("protocol knn on shades") for row in rows) == 1


def run_hash(run: Path) -> str:
    return json.dumps(json.loads((run / "manifest.json").read_text())["data_hash"])


def test_data_of_the_configuration_judge_the_run_itself(tiny: Tiny, tmp_path: Path, other_data: Path) -> None:
    config = tiny(evaluation={"data": {"name": "npz", "path": str(other_data)}})
    run_cell(prepare(config), tmp_path)
    summary = json.loads((tmp_path / cell_name(prepare(config)) / "summary.json").read_text())
    (facts,) = summary["evaluations"]
    assert facts["data_hash"] == prepare(config).evaluation_dataset.content_hash
    assert facts["data_hash"] != prepare(config).dataset.content_hash
    assert cell_name(prepare(config)) != cell_name(prepare(tiny()))


def test_a_file_in_place_of_another_is_told(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.arange(40) % 2
    for name in ("here", "there"):
        draw = np.random.default_rng(len(name))
        np.savez(tmp_path / name, images=draw.integers(0, 255, (40, 8, 8, 1)).astype(np.uint8), labels=labels)
    config = tiny(data={"name": "npz", "path": str(tmp_path / "here.npz"), "num_train": None})
    run_cell(prepare(config), tmp_path / "runs")
    words = ["evaluate", str(tmp_path / "runs"), "--protocol", "knn"]
    assert main(words) == 2  # the manifest keeps no absolute path
    assert "--data path=PATH says where the images are now" in capsys.readouterr().err
    assert main([*words, "--data", f"path={tmp_path / 'here.npz'}"]) == 0
    assert "not the images" not in capsys.readouterr().err
    assert main([*words, "--data", f"path={tmp_path / 'there.npz'}"]) == 0
    assert "these are not the images that the run knew" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--protocol", "knm"], "'linear', 'finetune', 'knn'"),
        (["--protocol", "knn", "federation.rounds=3"], "federation: the run is trained already; allowed: probe"),
        (["--protocol", "knn", "--data", "nam=x"], "did you mean 'name'"),
        (["--protocol", "knn", "evaluation.knn.kk=2"], "did you mean 'k'"),
    ],
)
def test_bad_words_are_named_and_nothing_is_written(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert main(["evaluate", str(run), *words]) == 2
    assert expected in capsys.readouterr().err
    assert not written(run)


def test_runs_that_are_not_finished_are_left_out_with_a_word(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, run.parent / "stopped")
    (run.parent / "stopped" / "summary.json").unlink()
    assert main(["evaluate", str(run.parent), "--protocol", "knn"]) == 0
    assert "stopped is left out, it is not finished" in capsys.readouterr().err
    assert main(["evaluate", str(run.parent / "stopped"), "--protocol", "knn"]) == 2


def test_a_run_that_is_made_anew_loses_what_was_said_of_the_old_one(tiny: Tiny, run: Path) -> None:
    main(["evaluate", str(run), "--protocol", "knn"])
    (run / "summary.json").unlink()
    run_cell(prepare(tiny()), run.parent)
    assert not written(run)
