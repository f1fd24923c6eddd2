"""`fedbench diff`: two runs side by side."""

from pathlib import Path

import pytest
from tiny_config import TINY

import fedbench
from fedbench.cli import main


def told(capsys: pytest.CaptureFixture[str], *paths: Path) -> str:
    assert main(["diff", *map(str, paths)]) == 0
    return capsys.readouterr().out


def test_the_same_cell_run_twice_is_equal_in_all_but_the_clock(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [fedbench.run(TINY, tmp_path / folder).path for folder in ("a", "b")]
    text = told(capsys, *runs)
    for words in ("Configuration: equal.", "Code and machine: equal.", "6, all equal", "Encoders: the same bits."):
        assert words in text
    assert "->" not in text


def test_another_seed_and_strategy_are_named_with_what_they_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = fedbench.run(TINY, tmp_path)
    other = fedbench.run(TINY, tmp_path, strategy="lw_fedssl", seed=1)
    lines = [line.split() for line in told(capsys, one.path, other.path).splitlines()]
    assert ["seed", "0", "->", "1"] in lines
    assert ["strategy.name", "fedssl", "->", "lw_fedssl"] in lines
    flops = [run.summary["client/flops"] for run in (one, other)]
    assert ["client/flops", str(flops[0]), "->", str(flops[1]), f"({flops[1] / flops[0]:.4g}x)"] in lines
    assert any(line[:7] == ["Rounds:", "the", "first", "that", "differs", "is", "0"] for line in lines)
    assert ["Encoders:", "not", "the", "same", "bits."] in lines


def test_runs_of_unequal_length_are_compared_as_far_as_both_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [fedbench.run(TINY, tmp_path, federation={"rounds": rounds}).path for rounds in (2, 3)]
    assert "Rounds: 2 and 3, equal as far as both go." in told(capsys, *runs)


def test_a_folder_without_a_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(tmp_path), str(tmp_path)]) == 2
    assert "no manifest.json in it; allowed: the directory of a finished run" in capsys.readouterr().err
