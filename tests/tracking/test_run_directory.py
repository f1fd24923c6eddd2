import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedbench.tracking import run_directory
from fedbench.tracking.client_rows import SCHEMA
from fedbench.tracking.run_directory import RunDirectory


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "out" / "cell")
    directory.start({"cell_hash": "abc", "cell_name": "cell"})
    return directory


def test_what_is_written_is_read_back(directory: RunDirectory) -> None:
    directory.append_round({"round": 0, "train/loss": 1.25})
    directory.append_round({"round": 1, "num_returned": 2})
    weight = torch.arange(6.0).reshape(2, 3).T  # not contiguous: safetensors would refuse it as it is
    directory.finish({"probe/linear_top1": 0.75}, {"block.1.weight": weight})

    assert directory.manifest() == {"cell_hash": "abc", "cell_name": "cell"}
    assert directory.rounds() == [{"round": 0, "train/loss": 1.25}, {"round": 1, "num_returned": 2}]
    summary = directory.summary()
    assert summary["probe/linear_top1"] == 0.75
    assert summary.keys() == {"probe/linear_top1", "files", "sha256"}
    assert torch.equal(load_file(directory.path / "encoder.safetensors")["block.1.weight"], weight)


def test_a_round_is_in_the_file_before_the_next_one_starts(directory: RunDirectory) -> None:
    directory.append_round({"round": 0})
    assert (directory.path / "rounds.jsonl").read_text() == '{"round": 0}\n'


def test_only_a_summary_of_the_same_configuration_counts_as_finished(directory: RunDirectory) -> None:
    assert not directory.is_finished("abc")
    directory.finish({}, {})
    assert directory.is_finished("abc")
    assert not directory.is_finished("other")
    assert not RunDirectory(directory.path / "absent").is_finished("abc")


def test_a_second_start_removes_what_the_first_attempt_left(directory: RunDirectory) -> None:
    directory.append_round({"round": 0})
    directory.finish({}, {"w": torch.ones(1)})
    directory.start({"cell_hash": "new"})
    assert [path.name for path in directory.path.iterdir()] == ["manifest.json"]
    assert directory.manifest() == {"cell_hash": "new"}


def test_a_crash_while_the_summary_is_written_leaves_the_run_unfinished(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter([None, OSError("no space left")])  # the encoder is synced, the summary is not

    def fsync(_: int) -> None:
        if error := next(calls):
            raise error

    monkeypatch.setattr(run_directory.os, "fsync", fsync)
    with pytest.raises(OSError, match="no space"):
        directory.finish({"probe/linear_top1": 0.75}, {"w": torch.ones(1)})
    assert not directory.is_finished("abc")
    assert (directory.path / "encoder.safetensors").is_file()


def test_a_number_that_is_not_finite_becomes_null_also_when_nested(directory: RunDirectory) -> None:
    directory.append_round(
        {"train/loss": float("nan"), "per_client": [1.5, float("inf")], "a": {"b": -float("inf")}}
    )

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    line = (directory.path / "rounds.jsonl").read_text()
    content = json.loads(line, parse_constant=refuse)
    assert content == {"train/loss": None, "per_client": [1.5, None], "a": {"b": None}}


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    state = {"b": torch.full((3,), 2.0), "a": torch.ones(2, 2)}
    for name in ("one", "two"):
        RunDirectory(tmp_path / name).start({})
        RunDirectory(tmp_path / name).finish({}, state)
    first, second = (tmp_path / name / "encoder.safetensors" for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()


def test_what_an_earlier_version_began_without_a_file_is_not_gone_on_from(directory: RunDirectory) -> None:
    directory.append_round({"round": 0})
    directory.append_clients({name: [] for name in SCHEMA.names})
    directory.append_ledger(["client"], [[0]])
    marks = directory.marks()
    assert directory.rewind(marks) == ""
    of_before = {name: mark for name, mark in marks.items() if name != "clients.arrow"}
    assert directory.rewind(of_before) == "an earlier version, which wrote no clients.arrow, began it"
