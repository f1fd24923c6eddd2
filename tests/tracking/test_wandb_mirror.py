import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fedbench.config import TrackingConfig
from fedbench.tracking.wandb_mirror import WandbMirror

OFFLINE = TrackingConfig(wandb="offline", project="p", group="g", tags=("t",))
HEADER_BYTES = 7  # of an empty log


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an account nor a place to leave files outside `tmp_path`."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "NETRC", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def log_file(folder: Path) -> Path:
    """The log of the only run under `folder`, once it is complete: wandb's service writes it, not this process."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 10
    while file.stat().st_size <= HEADER_BYTES and time.monotonic() < deadline:
        time.sleep(0.01)
    return file


def recorded(folder: Path) -> dict[str, Any]:
    """The only run under `folder`, as W&B's own reader sees it."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(log_file(folder))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def test_an_offline_run_holds_configuration_last_round_and_summary(tmp_path: Path) -> None:
    with WandbMirror(OFFLINE, "cell", {"seed": 3}, tmp_path / "cell") as mirror:
        for number in range(3):
            record = {"round": number, "train/loss": 2.0 - number, "participants": [0, 1], "note": "text"}
            mirror.log_round(record, step=number)
        mirror.finish({"probe/linear_top1": 0.75, "strategy": "fedssl"})
    run = recorded(tmp_path / "cell")
    assert (run["name"], run["project"], run["config"]) == ("cell", "p", {"seed": 3})
    assert (run["step"], run["state"], run["exit_code"]) == (2, "finished", 0)
    assert run["summary"]["train/loss"] == 0.0
    assert run["summary"]["probe/linear_top1"] == 0.75
    assert "participants" not in run["summary"]
    assert list((tmp_path / "cwd").iterdir()) == []


def test_a_cell_that_fails_is_recorded_as_failed(tmp_path: Path) -> None:
    def fail() -> None:
        with WandbMirror(OFFLINE, "cell", {}, tmp_path / "cell") as mirror:
            mirror.log_round({"round": 0}, step=0)
            raise RuntimeError("the run's own")

    with pytest.raises(RuntimeError, match="the run's own"):
        fail()
    assert recorded(tmp_path / "cell")["exit_code"] == 1


def test_two_cells_open_at_once_are_two_runs(tmp_path: Path) -> None:
    with (
        WandbMirror(OFFLINE, "first-cell", {}, tmp_path / "one") as one,
        WandbMirror(OFFLINE, "second-cell", {}, tmp_path / "two") as two,
    ):
        one.finish({})
        two.finish({})
    assert b"first-cell" in log_file(tmp_path / "one").read_bytes()
    assert b"second-cell" in log_file(tmp_path / "two").read_bytes()


def test_a_disabled_mirror_writes_nothing_and_does_not_import_wandb(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fedbench.config import TrackingConfig\n"
        "from fedbench.tracking.wandb_mirror import WandbMirror\n"
        f"folder = Path({str(tmp_path / 'cell')!r})\n"
        "with WandbMirror(TrackingConfig(wandb='disabled'), 'cell', {}, folder) as m:\n"
        "    m.log_round({'round': 0}, step=0); m.finish({})\n"
        "assert 'wandb' not in sys.modules"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
    assert not (tmp_path / "cell").exists()


def test_online_without_a_key_goes_offline_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with WandbMirror(TrackingConfig(wandb="online"), "cell", {}, tmp_path / "cell") as mirror:
        mirror.log_round({"round": 0, "train/loss": 1.5}, step=0)
        mirror.finish({"probe/linear_top1": 0.25})
    assert b"probe/linear_top1" in log_file(tmp_path / "cell").read_bytes()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fedbench:")]
    assert "no API key" in line
    assert "wandb sync" in line


def test_online_without_a_network_goes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    init = wandb.init

    def no_network(**keys: Any) -> Any:
        if keys["mode"] == "online":
            raise wandb.errors.CommError("connection refused")
        return init(**keys)

    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", no_network)
    with WandbMirror(TrackingConfig(wandb="online"), "cell", {}, tmp_path / "cell") as mirror:
        mirror.finish({"probe/linear_top1": 0.25})
    assert b"probe/linear_top1" in log_file(tmp_path / "cell").read_bytes()


class Broken:
    """A W&B run whose every call fails; counts the calls."""

    def __init__(self) -> None:
        self.calls = 0

    def log(self, *_: object, **__: object) -> None:
        self.calls += 1
        raise OSError("disk full")

    finish = log


def test_an_exception_in_wandb_is_told_once_and_ends_the_mirror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    broken = Broken()
    monkeypatch.setattr(wandb, "init", lambda **_: broken)
    with WandbMirror(OFFLINE, "cell", {}, tmp_path / "cell") as mirror:
        for number in range(3):
            mirror.log_round({"round": number}, step=number)
        mirror.finish({})
    assert broken.calls == 1
    assert capsys.readouterr().err.count("disk full") == 1
