"""fedbench from Python does what the command line does."""

import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import yaml
from tiny_config import TINY

import fedbench
from fedbench.cli import main
from fedbench.config import load_config
from fedbench.files import exclusive
from fedbench.profiling import profile as profile_config
from fedbench.tracking.run_directory import ENCODER


def bits(path: Path) -> str:
    return sha256((path / ENCODER).read_bytes()).hexdigest()


def test_a_run_has_the_bits_and_the_directory_of_the_command_line(tmp_path: Path) -> None:
    result = fedbench.run(TINY, tmp_path / "api", strategy="lw_fedssl@v3", seed=1)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    words = ["run", str(tmp_path / "tiny.yaml"), "strategy=lw_fedssl@v3", "seed=1", f"--out={tmp_path / 'cli'}"]
    assert main(words) == 0
    twin = tmp_path / "cli" / result.path.name
    assert bits(result.path) == bits(twin)
    assert (
        result.top1 == fedbench.run(tmp_path / "tiny.yaml", tmp_path / "cli", strategy="lw_fedssl@v3", seed=1).top1
    )


def test_rounds_come_as_they_are_trained_and_what_is_left_is_resumed(tmp_path: Path) -> None:
    whole = fedbench.run(TINY, tmp_path / "whole")
    rounds = fedbench.federate(TINY, tmp_path / "parts")
    first = next(rounds)
    rounds.close()
    assert first["round"] == 0
    assert first["train/loss"] == whole.rounds[0]["train/loss"]
    later = [line["round"] for line in fedbench.federate(TINY, tmp_path / "parts")]
    assert later == [1, 2, 3, 4, 5]
    assert bits(tmp_path / "parts" / whole.path.name) == bits(whole.path)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    once = fedbench.run(TINY, tmp_path)
    written = (once.path / ENCODER).stat().st_mtime_ns
    assert list(fedbench.federate(TINY, tmp_path)) == []
    assert fedbench.run(TINY, tmp_path).summary == once.summary
    assert (once.path / ENCODER).stat().st_mtime_ns == written


@pytest.mark.costs
def test_results_are_the_rows_of_the_leaderboard(tmp_path: Path) -> None:
    runs = [fedbench.run(TINY, tmp_path, seed=seed) for seed in (0, 1)]
    (row,) = fedbench.results(tmp_path)
    assert row.top1_by_seed == tuple(run.top1 for run in runs)
    assert row.flops == runs[0].summary["client/flops"]
    table = fedbench.results(tmp_path).to_pandas()
    assert list(table["top1_mean"]) == [row.top1_mean]
    assert len(fedbench.results(tmp_path)[:1]) == 1


@pytest.mark.costs
def test_the_clients_of_a_run_are_a_table_with_a_row_for_each_of_a_round(tmp_path: Path) -> None:
    result = fedbench.run(TINY, tmp_path)
    table = result.clients.to_pandas()
    drawn = list(zip(table["round"], table["client"], strict=True))
    assert drawn == [(number, client) for number in range(6) for client in range(3)]
    assert set(table["state"]) == {"returned"}
    for cost in ("flops", "download_bytes", "upload_bytes"):
        assert table[cost].sum() == result.summary[f"all_clients/{cost}"]


def test_an_encoder_comes_out_of_a_result(tmp_path: Path) -> None:
    encoder = fedbench.run(TINY, tmp_path).encoder()
    assert encoder(torch.zeros(2, 1, 8, 8)).shape == (2, encoder.feature_dim)


def test_a_profile_is_the_commands() -> None:
    ours = fedbench.profile(TINY, samples=20, strategy="lw_fedssl")
    theirs = profile_config(load_config(TINY, {"strategy": "lw_fedssl"}), 20)
    assert ours.peak_memory_bytes == theirs.peak_memory_bytes > 0


def test_a_configuration_may_be_a_name_a_file_a_mapping_or_checked(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    ways = [str(tmp_path / "tiny.yaml"), tmp_path / "tiny.yaml", TINY, load_config(TINY)]
    assert len({str(fedbench.profile(way, seed=3)) for way in ways}) == 1
    assert fedbench.profile("digits").strategy == "fedssl"


def test_bad_input_is_named_with_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(fedbench.UserError, match=r"federation\.round.*did you mean 'rounds'"):
        fedbench.run(TINY, tmp_path, federation={"round": 3})
    with pytest.raises(fedbench.UserError, match=r"presets: 'nothing'"):
        fedbench.run("nothing", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_another_process_is_an_error_that_says_so(tmp_path: Path) -> None:
    name = fedbench.run(TINY, tmp_path / "once").path.name
    with exclusive(tmp_path / "again" / name), pytest.raises(fedbench.UserError, match="another process"):
        fedbench.run(TINY, tmp_path / "again")


def test_the_import_alone_costs_no_torch() -> None:
    code = "import sys, fedbench; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_not_there_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="train"):
        fedbench.train  # noqa: B018
