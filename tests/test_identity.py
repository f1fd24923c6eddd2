"""A cell is what it does, however it is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_config import TINY

from fedbench.cli import main
from fedbench.config import Config
from fedbench.federation.experiment import prepare
from fedbench.federation.naming import strategy_label, whole
from fedbench.reporting.ranking import leaderboard
from fedbench.running.cell import _diverged, cell_name, identity, run_cell
from fedbench.tracking.runs import read_runs

Tiny = Callable[..., Config]
SOURCE = """
from dataclasses import dataclass
from fedbench.federation import StagePlan, Strategy

@dataclass(frozen=True)
class Mine(Strategy):
    pull: float = 0.5

    def plan(self, stage, num_blocks):
        return StagePlan(num_blocks, trainable=range(num_blocks), upload=range(num_blocks))
"""


def test_a_default_that_is_written_out_makes_no_other_cell(tiny: Tiny) -> None:
    ways: list[Any] = ["lw_fedssl", "lw_fedssl@v4", {"name": "lw_fedssl", "blocks_per_stage": 1, "moon": None}]
    assert len({cell_name(prepare(tiny(strategy=way))) for way in ways}) == 1


def test_what_changes_the_algorithm_makes_another_cell(tiny: Tiny) -> None:
    fields: list[dict[str, Any]] = [{}, {"blocks_per_stage": 3}, {"init": "copy_previous"}, {"moon": True}]
    found = {identity(prepare(tiny(strategy={"name": "lw_fedssl", **more}))) for more in fields}
    assert len(found) == len(fields)


def test_plugins_that_differ_in_their_class_alone_are_different_cells(tiny: Tiny) -> None:
    assert len({identity(prepare(tiny(ssl={"name": name}))) for name in ("moco_v3", "byol", "simclr")}) == 3
    assert len({identity(prepare(tiny(strategy=name))) for name in ("fedssl", "prog_fedssl", "lw_fedssl")}) == 3


def test_a_path_may_be_spelled_in_any_way(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    ways = ["mine.py", "./mine.py", str(tmp_path / "mine.py"), "mine.py:Mine"]
    assert len({identity(prepare(tiny(strategy=way))) for way in ways}) == 1


@pytest.mark.parametrize(
    ("strategy", "label"),
    [
        ("fedssl", "fedssl"),
        ("lw_fedssl", "lw_fedssl@v4"),
        ({"name": "lw_fedssl@v3", "alignment": None}, "lw_fedssl@v3(alignment=None)"),
        ({"name": "lw_fedssl@v3", "calibration": {"epochs": 3}}, "lw_fedssl@v3(calibration.epochs=3)"),
        ({"name": "fedssl", "proximal": {"mu": 0.5}}, "fedssl(proximal.mu=0.5)"),
        ({"name": "fedssl", "moon": True}, "fedssl(moon=True)"),
        ({"name": "lw_fedssl", "blocks_per_stage": 2}, "lw_fedssl@v4(blocks_per_stage=2)"),
    ],
)
def test_a_label_names_the_nearest_preset_and_what_differs(tiny: Tiny, strategy: Any, label: str) -> None:
    assert strategy_label(tiny(strategy=strategy)) == label
    again: Config = tiny(strategy=whole(tiny(strategy=strategy).strategy))
    assert strategy_label(again) == label


def test_two_files_of_one_name_are_two_plugins(tiny: Tiny, tmp_path: Path) -> None:
    for folder, default in (("a", "0.5"), ("b", "0.7")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(SOURCE.replace("0.5", default))
    found = [prepare(tiny(strategy=str(tmp_path / folder / "mine.py"))) for folder in ("a", "b", "a")]
    assert [one.config.strategy["pull"] for one in found] == [0.5, 0.7, 0.5]


def test_two_versions_of_a_plugin_stand_in_two_rows_that_name_their_code(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    for text in (SOURCE, SOURCE + "# another version\n"):
        file.write_text(text)
        run_cell(prepare(tiny(strategy=str(file), federation={"rounds": 1})), tmp_path / "runs")
    rows = leaderboard(read_runs(tmp_path / "runs"))
    assert [row.strategy for row in rows] == ["mine.py", "mine.py"]
    assert all(row.variant.startswith("code=") for row in rows)
    assert rows[0].variant != rows[1].variant


@pytest.mark.parametrize(
    ("loss", "num_rejected", "diverged"), [(1.5, 0, False), (None, 0, True), (1.5, 1, False), (1.5, 2, True)]
)
def test_the_last_round_in_which_somebody_trained_says_whether_a_run_diverged(
    loss: float | None, num_rejected: int, diverged: bool
) -> None:
    """Of three clients one was lost before it trained; in the round after that, all were."""
    drawn = {"num_participants": 3, "num_lost_before": 1, "num_rejected": num_rejected, "train/loss": loss}
    nobody = {"num_participants": 3, "num_lost_before": 3, "num_rejected": 0, "train/loss": None}
    assert _diverged([drawn, nobody]) == diverged
    assert not _diverged([nobody])


def test_a_cell_that_diverges_ends_with_its_own_state_and_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["optimizer.base_lr=1e30", "federation.rounds=2", f"--out={tmp_path}"]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    assert main(["run", str(tmp_path / "tiny.yaml"), *words]) == 3
    assert "DIVERGED" in capsys.readouterr().err
    assert main(["run", str(tmp_path / "tiny.yaml"), *words]) == 3
    assert "1 diverged" in capsys.readouterr().err


def test_an_ssl_method_written_with_its_defaults_is_the_same_cell(tiny: Callable[..., Config]) -> None:
    short, long, other = (
        identity(prepare(tiny(ssl={"name": "vicreg", **keys})))
        for keys in ({}, {"invariance": 25, "covariance": 1.0}, {"invariance": 24.0})
    )
    assert short == long != other


def test_an_encoder_written_with_its_defaults_is_the_same_cell(tiny: Callable[..., Config]) -> None:
    short, long, other = (
        identity(prepare(tiny({"encoder": {"name": "cnn", **keys}}))) for keys in ({}, {"width": 64}, {"width": 8})
    )
    assert short == long != other
