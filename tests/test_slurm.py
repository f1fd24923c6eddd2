"""A grid as an array job: what SLURM is told, and that a part that is stopped goes on when it is queued again."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_config import TINY

from fedbench.cli import main
from fedbench.running.slurm import Part, parts


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"base": TINY, "axes": {"seed": [0, 1, 2]}}))
    return path


def test_a_dry_run_prints_what_sbatch_would_be_given(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["submit", "--grid", str(grid), "--shards", "3", "--out", str(tmp_path / "out"), "--grace", "30"]
    assert main([*words, "--slurm", "partition=gpu", "time=240", "gpus_per_node=1", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "#!/bin/bash"
    wanted = [
        "array=0-2%3",
        "gpus-per-node=1",
        "job-name=fedbench",
        "partition=gpu",
        "time=240",
        "signal=USR2@150",
    ]
    assert {f"#SBATCH --{one}" for one in wanted} <= set(lines)
    assert f"-m submitit.core._submit {tmp_path / 'out' / 'slurm'}" in lines[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shards", "4"], "--shards 4 of 3 cell(s); allowed: 1 to 3"),
        (["--shards", "2", "--slurm", "queue=gpu"], "--slurm queue=gpu; allowed: account, "),
        (["--shards", "2", "--slurm", "gpu"], "--slurm gpu; allowed: key=value"),
        (["--shards", "2", "seeed=1"], "seeed"),
        (["--shards", "2"], 'submit: Could not detect "srun"'),
    ],
)
def test_what_cannot_be_submitted_is_refused_by_name(
    grid: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.setattr("submitit.slurm.slurm.SlurmExecutor.affinity", lambda self: -1)
    assert main(["submit", "--grid", str(grid), "--out", str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err


def test_without_submitit_it_is_said_how_it_is_installed(
    grid: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fedbench.running.slurm.find_spec", lambda name: None)
    assert main(["submit", "--grid", str(grid), "--shards", "2", "--dry-run"]) == 2
    assert "pip install 'fedbench[slurm]'" in capsys.readouterr().err


def test_the_parts_are_those_of_run_and_a_part_that_fails_says_so(tmp_path: Path) -> None:
    first, second = parts(["--grid", "mine"], 2, grace=5)
    assert first.words == ["--grid", "mine", "--shard", "1/2", "--grace", "5"]
    assert second.words[3] == "2/2"
    with pytest.raises(RuntimeError, match="ended with exit code 2"):
        Part(["--grid", "no such grid"], "1/1", tmp_path, 5)()


@pytest.mark.exhaustive
def test_a_part_whose_node_is_wanted_is_queued_again_and_goes_on(tmp_path: Path) -> None:
    from submitit import LocalExecutor

    (tmp_path / "slow.py").write_text(
        "import time\nfrom fedbench.methods.federation.fedssl import FedSSL\n"
        "class Slow(FedSSL):\n"
        "    def aggregate(self, updates, server):\n"
        "        time.sleep(2)\n"
        "        return super().aggregate(updates, server)\n"
    )
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**TINY, "strategy": str(tmp_path / "slow.py")}))
    words = [str(config), "--out", str(tmp_path / "out")]
    job: Any = LocalExecutor(tmp_path / "logs").submit_array([Part(words, "1/1", tmp_path, 60)])[0]
    end = time.monotonic() + 120
    while not list((tmp_path / "out").glob("*/checkpoint.safetensors")) and time.monotonic() < end:
        time.sleep(0.1)
    (task,) = children(job._process.pid)
    (part,) = children(task)
    for number in (part, task):  # SLURM tells all of them
        os.kill(number, signal.SIGUSR2)
    assert job.result() == 0  # submitit has queued it again
    assert b"Caught signal SIGUSR2" in job.paths.stdout.read_bytes()
    assert "the same command goes on after the last whole round" in job.stderr()
    assert "resumed after round" in job.stderr()


def children(process: int) -> list[int]:
    """Processes that it started."""
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
