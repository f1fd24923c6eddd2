"""`python -m fedbench check`, as somebody with a strategy of their own uses it."""

from pathlib import Path

import pytest

from fedbench.cli import main

pytestmark = pytest.mark.dry_run

LEAKY = """
from dataclasses import dataclass

from fedbench.federation import GrowingStrategy, StagePlan


@dataclass(frozen=True)
class Leaky(GrowingStrategy):
    def plan(self, stage, num_blocks):
        newest = self.newest_blocks(stage, num_blocks)
        return StagePlan(newest.stop, trainable=range(newest.stop), upload=newest)
"""
READS_ONE = (
    LEAKY.replace("trainable=range(newest.stop)", "trainable=newest")
    + """
    def aggregate(self, updates, server):
        return next(updates).state
"""
)


def test_a_good_strategy_passes_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "lw_fedssl", "blocks_per_stage=2"]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(": 0 failed\n")
    for situation in ("all clients", "one client", "some lost, one late"):
        assert situation in printed


def test_what_a_look_at_the_plan_shows_is_said_at_once_and_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "leaky.py"
    path.write_text(LEAKY)
    assert main(["check", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    found = [(block, stage) for stage in (2, 3) for block in range(stage - 1)]
    told = [f"  block {block} is trained, not uploaded, in stage {stage}" for block, stage in found]
    assert lines == ["The plan:", *told, "Not looked further; -v does."]


@pytest.mark.exhaustive  # the other faults are found by the same checks
def test_a_block_that_is_trained_and_never_uploaded_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "leaky.py"
    path.write_text(LEAKY)
    assert main(["check", "-v", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "upload is what was trained" in printed
    assert "seen:     trained, not uploaded: encoder.blocks.0" in printed
    assert "where:    all clients: stage 2, round 2, client 0" in printed


def test_a_strategy_that_raises_is_shown_with_its_file_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "raises.py"
    later = "return [][1] if server.round_index else [update.state for update in updates][0]"
    path.write_text(READS_ONE.replace("return next(updates).state", later))
    assert main(["check", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "seen:     IndexError: list index out of range" in printed
    assert f"where:    all clients: {path}, line 14" in printed
    path.write_text(READS_ONE.replace("return next(updates).state", "return [][1]"))
    assert main(["check", str(path)]) == 2  # the dry run finds it
    assert f"IndexError: list index out of range ({path}, line 14)" in capsys.readouterr().err


def test_what_cannot_be_started_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "fedssl", "lw_fedssl"]) == 2
    assert main(["check", "mono"]) == 2
    assert "did you mean 'moon'?" in capsys.readouterr().err
    path = tmp_path / "reads_one.py"
    path.write_text(READS_ONE)
    assert main(["check", str(path)]) == 2
    assert "aggregate left updates" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_a_mechanism_is_checked_with_strategies_of_both_kinds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "moves_weights.py"
    path.write_text(
        """
from dataclasses import dataclass

from fedbench.federation import LocalStep, Mechanism


@dataclass(frozen=True)
class MovesWeights(Mechanism):
    by: float = 0.1

    def local_loss(self, step: LocalStep):
        for weight in step.trained.values():
            weight.data.add_(self.by)
        return None
"""
    )
    assert main(["check", str(path), "by=0.5"]) == 1
    printed = capsys.readouterr().out
    assert "fedssl, all clients" in printed
    assert "lw_fedssl, one client" in printed
    assert "MovesWeights.local_loss" in printed


@pytest.mark.exhaustive  # `fedbench new ssl` and its test run one
def test_an_ssl_method_is_checked_like_a_strategy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "byol"]) == 0
    assert "lw_fedssl, some lost, one late" in capsys.readouterr().out
