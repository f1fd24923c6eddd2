"""A run that was stopped anywhere goes on, and ends with the same bits as one that was not."""

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from exhaustive import exhaustive
from tiny_config import TINY

from fedbench.config import Config
from fedbench.errors import UserError
from fedbench.federation import checkpoint
from fedbench.federation.experiment import prepare
from fedbench.files import exclusive
from fedbench.running.cell import cell_name, run_cell
from fedbench.tracking.run_directory import RunDirectory

Tiny = Callable[..., Config]
KILLS = int(os.environ.get("FEDBENCH_KILLS", "3"))
UNRELIABLE = {"num_clients": 5, "participants": 3, "dropout_before": 0.2, "late_clients": 1, "late_round": 3}
TIMED = ("seconds", "files", "sha256")  # digests of files that hold times
FEDSSL: dict[str, Any] = {"strategy": "fedssl"}
CALIBRATED: dict[str, Any] = {"strategy": "lw_fedssl@v3"}
REMEMBERING: dict[str, Any] = {"strategy": {"name": "prog_fedssl", "moon": True}}
LOST_AND_LATE: dict[str, Any] = {
    "strategy": {"name": "lw_fedssl@v4", "depth_dropout": {"max_depth": 2}},
    "federation": UNRELIABLE,
}


class StoppedError(Exception):
    """As if the machine had gone."""


def directory_of(config: Config, out: Path) -> RunDirectory:
    return RunDirectory(out / cell_name(prepare(config)))


def result(directory: RunDirectory) -> tuple[Any, ...]:
    """All that a run leaves, times aside."""
    rounds = [{k: v for k, v in one.items() if not k.startswith("seconds")} for one in directory.rounds()]
    ledger = gzip.decompress((directory.path / "ledger.csv.gz").read_bytes()).decode()
    summary = {key: value for key, value in directory.summary().items() if key not in TIMED}
    clients = directory.clients().drop_columns("seconds").to_pydict()
    return (directory.path / "encoder.safetensors").read_bytes(), rounds, clients, ledger, summary


def stop_after(monkeypatch: pytest.MonkeyPatch, done: int, before_checkpoint: bool) -> None:
    write = checkpoint.Checkpoint.write

    def stop(self: checkpoint.Checkpoint, folder: Path, **facts: object) -> None:
        last = self.facts["rounds_done"] == done
        if not (last and before_checkpoint):
            write(self, folder, **facts)
        if last:
            raise StoppedError

    monkeypatch.setattr(checkpoint.Checkpoint, "write", stop)


def run_until(config: Config, out: Path, done: int, before_checkpoint: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, done, before_checkpoint)
        with pytest.raises(StoppedError):
            run_cell(prepare(config), out)


@pytest.mark.parametrize(
    ("case", "done", "before_checkpoint"),
    [
        exhaustive(FEDSSL, 2, False),  # a stage has two rounds
        exhaustive(FEDSSL, 3, True),
        exhaustive(CALIBRATED, 2, False),
        (CALIBRATED, 3, True),
        exhaustive(REMEMBERING, 2, False),
        (REMEMBERING, 3, True),
        (LOST_AND_LATE, 2, False),
        exhaustive(LOST_AND_LATE, 3, True),
    ],
)
def test_a_stopped_run_ends_with_the_same_bits(
    tiny: Tiny, tmp_path: Path, case: dict[str, Any], done: int, before_checkpoint: bool
) -> None:
    config = tiny(case)
    whole, stopped = directory_of(config, tmp_path / "a"), directory_of(config, tmp_path / "b")
    run_cell(prepare(config), tmp_path / "a")
    run_until(config, tmp_path / "b", done, before_checkpoint)
    assert not stopped.is_finished(stopped.manifest()["cell_hash"])
    words = run_cell(prepare(config), tmp_path / "b").words
    kept = done - before_checkpoint
    assert words.endswith(f"resumed after round {kept}") if kept else "resumed" not in words
    assert result(stopped) == result(whole)
    assert not list(stopped.path.glob("checkpoint*"))


def stopped_run(config: Config, out: Path, done: int = 3) -> RunDirectory:
    run_until(config, out, done, before_checkpoint=False)
    return directory_of(config, out)


def flip_a_bit(content: bytes) -> bytes:
    """In a value: the header stays sound."""
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


@pytest.mark.parametrize(
    "damage",
    [
        exhaustive(lambda _: b""),
        exhaustive(lambda _: b"rubbish"),
        exhaustive(lambda content: content[:-7]),
        flip_a_bit,
    ],
)
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(
    tiny: Tiny, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    config = tiny()
    directory = stopped_run(config, tmp_path / "b")
    path = directory.path / checkpoint.NAME
    path.write_bytes(damage(path.read_bytes()))
    words = run_cell(prepare(config), tmp_path / "b").words
    assert words.endswith("resumed after round 2")
    assert f"{checkpoint.NAME} cannot be read" in words
    run_cell(prepare(config), tmp_path / "a")
    assert result(directory) == result(directory_of(config, tmp_path / "a"))


@pytest.mark.parametrize("name", ["rounds.jsonl", exhaustive("clients.arrow"), exhaustive("ledger.csv.gz")])
def test_a_changed_line_of_a_stopped_run_is_told_and_not_gone_on_from(
    tiny: Tiny, tmp_path: Path, name: str
) -> None:
    """In the last round: the checkpoint before it vouches for the rest; in the first one: for nothing."""
    config = tiny()
    run_cell(prepare(config), tmp_path / "a")
    whole = result(directory_of(config, tmp_path / "a"))
    for where, place, words in (("b", -9, "resumed after round 2"), ("c", 20, "it began anew")):
        directory = stopped_run(config, tmp_path / where)
        content = bytearray((directory.path / name).read_bytes())
        content[place] ^= 1
        (directory.path / name).write_bytes(content)
        said = run_cell(prepare(config), tmp_path / where).words
        assert f"{name} is not what was written" in said
        assert words in said
        assert result(directory) == whole


def damage_the_newest(directory: RunDirectory) -> None:
    """Of the lines that the last two checkpoints vouch for, one that an older checkpoint knows nothing of."""
    path = directory.path / "rounds.jsonl"
    path.write_text(path.read_text().replace('"round": 2,', '"round": 7,'))


def test_a_checkpoint_that_was_kept_is_gone_on_from_where_later_ones_cannot_be(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(tracking={"checkpoints": 2})
    directory = stopped_run(config, tmp_path / "b", done=4)
    damage_the_newest(directory)
    words = run_cell(prepare(config), tmp_path / "b").words
    assert words.endswith("resumed after round 2")
    assert "rounds.jsonl is not what was written" in capsys.readouterr().err
    run_cell(prepare(config), tmp_path / "a")
    assert result(directory) == result(directory_of(config, tmp_path / "a"))


def test_where_clients_kept_something_an_older_checkpoint_needs_what_they_had_by_then(
    tiny: Tiny, tmp_path: Path
) -> None:
    """Their older states are removed as they go on: without them the bits would be others, and nobody told."""
    config = tiny(REMEMBERING, tracking={"checkpoints": 1})
    directory = stopped_run(config, tmp_path / "b", done=5)
    path = directory.path / "rounds.jsonl"
    path.write_text(path.read_text().replace('"round": 1,', '"round": 7,'))  # leaves the checkpoint of round 1
    words = run_cell(prepare(config), tmp_path / "b").words
    assert "what clients kept by then is there no more" in words
    assert "it began anew" in words
    run_cell(prepare(config), tmp_path / "a")
    assert result(directory) == result(directory_of(config, tmp_path / "a"))


def test_a_checkpoint_of_another_version_is_refused_and_nothing_is_thrown_away(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny()
    directory = stopped_run(config, tmp_path)
    files = {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}
    monkeypatch.setattr("fedbench.tensor_file.FORMAT", "later")
    with pytest.raises(UserError, match=r"of another version of fedbench.*; allowed: to finish the run with that"):
        run_cell(prepare(config), tmp_path)
    assert {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()} == files


def test_what_a_client_kept_is_checked_before_a_run_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(REMEMBERING)
    run_cell(prepare(config), tmp_path / "a")
    directory = stopped_run(config, tmp_path / "b")
    newest = max((directory.path / "clients" / "000001").glob("*"))
    newest.write_bytes(flip_a_bit(newest.read_bytes()))
    said = run_cell(prepare(config), tmp_path / "b").words
    assert f"{newest} is not what was written" in said
    assert "resumed after round 2" in said
    assert result(directory) == result(directory_of(config, tmp_path / "a"))


def test_without_a_readable_checkpoint_a_run_begins_anew(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny()
    directory = stopped_run(config, tmp_path / "b")
    for name in (checkpoint.NAME, checkpoint.PREVIOUS):
        (directory.path / name).write_bytes(b"rubbish")
    assert "resumed" not in run_cell(prepare(config), tmp_path / "b").words
    assert len(directory.rounds()) == 6


def test_rounds_that_are_missing_from_the_files_begin_anew(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny()
    directory = stopped_run(config, tmp_path / "b")
    (directory.path / "rounds.jsonl").write_text("")
    words = run_cell(prepare(config), tmp_path / "b").words
    assert "it began anew" in words
    assert "resumed" not in words


def test_files_that_lack_one_round_are_gone_on_from_the_checkpoint_before(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny()
    directory = stopped_run(config, tmp_path / "b")
    path = directory.path / "rounds.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert run_cell(prepare(config), tmp_path / "b").words.endswith("resumed after round 2")
    run_cell(prepare(config), tmp_path / "a")
    assert result(directory) == result(directory_of(config, tmp_path / "a"))


@pytest.mark.parametrize("left", [None, '{"cell_hash'])
def test_a_run_that_lost_its_manifest_goes_on_with_a_new_one(tiny: Tiny, tmp_path: Path, left: str | None) -> None:
    config = tiny()
    directory = stopped_run(config, tmp_path)
    path = directory.path / "manifest.json"
    path.unlink() if left is None else path.write_text(left)
    words = run_cell(prepare(config), tmp_path).words
    assert "its manifest was lost and is written anew; resumed after round 3" in words
    assert directory.is_finished(directory.manifest()["cell_hash"])


def test_what_a_kill_left_half_written_is_removed(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny()
    directory = stopped_run(config, tmp_path)
    part = directory.path / ".checkpoint.safetensors.host.1.part"
    part.write_bytes(b"half")
    run_cell(prepare(config), tmp_path)
    assert not part.exists()


def test_a_run_that_other_code_began_says_so_when_it_goes_on(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_run(tiny(), tmp_path)
    monkeypatch.setattr("fedbench.running.cell.git_state", lambda source: {"commit": "f00d", "dirty": False})
    assert "BY OTHER CODE" in run_cell(prepare(tiny()), tmp_path).words


def test_a_resumed_run_asks_wandb_for_the_run_that_it_was(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    asked: list[dict[str, Any]] = []
    steps: list[int] = []

    def init(**keys: Any) -> Any:
        asked.append(keys)
        run = Mock(starting_step=0)  # an offline run knows of no other
        run.log.side_effect = lambda numbers, step: steps.append(step)
        return run

    monkeypatch.setattr(wandb, "init", init)
    config = tiny(tracking={"wandb": "offline"})
    run_until(config, tmp_path, done=3, before_checkpoint=True)
    run_cell(prepare(config), tmp_path)
    run_cell(prepare(tiny(tracking={"wandb": "offline"}, seed=1)), tmp_path)
    first, resumed, other = [keys["id"] for keys in asked]
    assert first == resumed != other
    assert {keys["resume"] for keys in asked} == {"allow"}
    assert steps == [0, 1, *range(6), *range(6)]  # each log is whole: W&B may have lost the stopped one's end


def test_a_checkpoint_of_another_run_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny()
    mine, other = stopped_run(config, tmp_path / "b"), stopped_run(tiny(seed=1), tmp_path / "b")
    shutil.copy(other.path / checkpoint.NAME, mine.path / checkpoint.NAME)
    with pytest.raises(UserError, match=r"belongs to another run .* allowed: to remove it, or another --out"):
        run_cell(prepare(config), tmp_path / "b")


def test_a_full_disk_loses_one_round(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny()
    written = []

    def full(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) > 2:
            raise OSError(28, "No space left on device")
        path.write_bytes(content)

    monkeypatch.setattr("fedbench.federation.checkpoint.write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        run_cell(prepare(config), tmp_path / "b")
    monkeypatch.undo()
    assert "resumed after round 2" in run_cell(prepare(config), tmp_path / "b").words


def test_one_cell_is_never_run_by_two(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny()
    with exclusive(directory_of(config, tmp_path).path) as mine:
        assert mine
        assert run_cell(prepare(config), tmp_path).words == "is being run by another process"
    run_cell(prepare(config), tmp_path)
    assert run_cell(prepare(config), tmp_path).words.startswith("was finished already")


@pytest.mark.exhaustive
@pytest.mark.costs
@pytest.mark.parametrize("kills", [1, KILLS])
def test_killed_at_random_moments(tiny: Tiny, tmp_path: Path, kills: int) -> None:
    """SIGKILL; `FEDBENCH_KILLS=20` (make stress) for more of them."""
    federation = {**TINY["federation"], "rounds": 12 if kills == 1 else 30, "local_epochs": 2}
    changed = {"strategy": "lw_fedssl@v3", "federation": federation}
    config = tiny(changed)
    run_cell(prepare(config), tmp_path / "a")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**TINY, **changed}))
    command = [sys.executable, "-m", "fedbench", "run", str(file), "--out", str(tmp_path / "b")]
    directory = directory_of(config, tmp_path / "b")
    draw = random.Random(0)
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begun = len(rounds_of(directory))
        while process.poll() is None and len(rounds_of(directory)) <= begun:
            time.sleep(0.01)
        time.sleep(draw.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, capture_output=True)
    assert result(directory) == result(directory_of(config, tmp_path / "a"))


def rounds_of(directory: RunDirectory) -> list[str]:
    path = directory.path / "rounds.jsonl"
    return path.read_text().splitlines() if path.is_file() else []


def test_every_line_of_a_killed_run_is_whole(tiny: Tiny, tmp_path: Path) -> None:
    directory = stopped_run(tiny(), tmp_path)
    assert [json.loads(line)["round"] for line in rounds_of(directory)] == [0, 1, 2]
