"""Running many cells: some fail, some die, some are another process's; the rest is finished all the same."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from tiny_config import TINY

from fedbench import stopping
from fedbench.cli import main
from fedbench.config import Config
from fedbench.federation.experiment import prepare
from fedbench.files import exclusive
from fedbench.profiling import profile
from fedbench.reporting.ranking import Row
from fedbench.running import cells as cells_module
from fedbench.running.attempt import Task, attempt
from fedbench.running.cell import Outcome, cell_name, run_cell
from fedbench.running.cells import prepare_cells, run_cells
from fedbench.running.forecast import forecast
from fedbench.tracking.progress import Progress, duration
from fedbench.tracking.run_directory import RunDirectory

Tiny = Callable[..., Config]
PLUGIN = '''
"""Ends in the second stage as `how` says."""

import os
import signal
from dataclasses import dataclass

from fedbench.federation import GrowingStrategy, StagePlan


@dataclass(frozen=True)
class Unlucky(GrowingStrategy):
    how: str = "raises"

    def plan(self, stage, num_blocks):
        newest = self.newest_blocks(stage, num_blocks)
        return StagePlan(newest.stop, trainable=newest, upload=newest)

    def start_stage(self, stage, fresh, server):
        if stage == 2 and self.how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if stage == 2:
            raise RuntimeError("no luck")
        return super().start_stage(stage, fresh, server)
'''


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """Two cells that end well around two that do not."""
    (tmp_path / "unlucky.py").write_text(PLUGIN)
    bad = [{"name": str(tmp_path / "unlucky.py"), "how": how} for how in ("raises", "dies")]
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"base": TINY, "axes": {"strategy": ["fedssl", *bad, "lw_fedssl"]}}))
    return path


def summaries(out: Path) -> set[str]:
    return {json.loads(path.read_text())["strategy"] for path in out.glob("*/summary.json")}


def test_a_cell_that_fails_or_dies_does_not_stop_the_rest(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["run", "--grid", str(grid), "--out", str(out), "--jobs", "2"]) == 1
    printed = capsys.readouterr()
    assert "2 finished" in printed.err
    assert "2 failed" in printed.err
    assert "FAILED, RuntimeError: no luck" in printed.err
    assert "FAILED, its process died, exit code -9" in printed.err
    assert summaries(out) == {"fedssl", "lw_fedssl@v4"}
    assert "lw_fedssl" in printed.out
    texts = [path.read_text() for path in out.glob("*/error.txt")]
    assert len(texts) == 2
    assert any('raise RuntimeError("no luck")' in text for text in texts)


@pytest.mark.exhaustive
def test_the_number_of_jobs_does_not_change_a_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"base": TINY, "axes": {"strategy": ["fedssl", "lw_fedssl@v3"]}}))
    for jobs in ("1", "2"):
        main(["run", "--grid", str(path), "--out", str(tmp_path / jobs), "--jobs", jobs])
    one, two = (
        {path.parent.name: path.read_bytes() for path in (tmp_path / jobs).glob("*/encoder*")} for jobs in "12"
    )
    assert len(one) == 2
    assert one == two


def test_a_failed_cell_goes_on_when_it_is_started_again(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("fedbench.running.cell._evaluate", lambda *_: 1 / 0)
        assert run_cells([tiny()], tmp_path) == {"failed": 1}
    assert "FAILED, ZeroDivisionError" in capsys.readouterr().err
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert (folder / "error.txt").is_file()
    assert run_cells([tiny()], tmp_path) == {"finished": 1}
    assert "resumed after round 6" in capsys.readouterr().err
    assert not (folder / "error.txt").exists()


def test_cells_of_another_process_are_left_to_it(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = [tiny(seed=0), tiny(seed=1)]
    with exclusive(tmp_path / cell_name(prepare(configs[0]))):
        assert run_cells(configs, tmp_path) == {"elsewhere": 1, "finished": 1}
    assert "is being run by another process" in capsys.readouterr().err


class Tables:
    """In place of the leaderboard's files: takes a while, and notes after how many cells it was written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.seconds, self.ended, self.written = seconds, 0, list[int]()
        monkeypatch.setattr(cells_module, "attempt", self.attempt)
        monkeypatch.setattr(cells_module, "_refresh", self.refresh)

    def attempt(self, task: Task) -> Outcome:
        outcome = attempt(task)
        self.ended += 1
        return outcome

    def refresh(self, out: Path) -> list[Row]:
        time.sleep(self.seconds)
        self.written.append(self.ended)
        return []


@pytest.mark.parametrize(("seconds", "written"), [(0.0, [1, 2, 3]), (0.7, [1, 3])])
def test_tables_that_take_long_are_written_less_often(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, written: list[int]
) -> None:
    """Cells take a second at most, and the next table waits for twenty times as long as the last one took."""
    tables = Tables(monkeypatch, seconds)
    run_cells([tiny(optimizer={"base_lr": rate}) for rate in (0.1, 0.2, 0.3)], tmp_path)
    assert tables.written == written


def test_a_stop_writes_the_tables_that_would_have_waited(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = Tables(monkeypatch, 0.7)
    monkeypatch.setattr(stopping, "is_asked", lambda: tables.ended == 2)
    with pytest.raises(stopping.StoppedError):
        run_cells([tiny(optimizer={"base_lr": rate}) for rate in (0.1, 0.2, 0.3)], tmp_path)
    assert tables.written == [1, 2]


@pytest.mark.costs
def test_a_dry_run_lists_what_a_run_costs_and_what_is_done(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "grid.yaml"
    uneven = {**TINY, "data": {"name": "digits", "num_train": 61}}
    path.write_text(yaml.safe_dump({"base": uneven, "axes": {"strategy": ["fedssl", "lw_fedssl"]}}))
    words = ["run", "--grid", str(path), "--out", str(tmp_path / "out")]
    assert main([*words, "--dry-run"]) == 0
    before = capsys.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in before[2:4]] == ["waiting", "waiting"]
    assert not (tmp_path / "out").exists()
    main([*words, "--shard", "1/2"])
    capsys.readouterr()
    table = (tmp_path / "out" / "leaderboard.md").read_text()
    rows = " ".join(line for line in table.splitlines() if "| fedssl" in line)
    flops, server, *others = (column.strip() for column in before[2].split("|")[3:8])
    assert server == "0"
    for cost in (flops, *others):
        assert f"{cost} (1.00x)" in rows
    main([*words, "--dry-run"])
    after = capsys.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in after[2:4]] == ["finished", "waiting"]


def test_the_live_table_tells_what_every_cell_is_at(tiny: Tiny, tmp_path: Path) -> None:
    configs = [tiny(seed=seed) for seed in range(4)]
    tasks = prepare_cells(configs, tmp_path)
    run_cell(prepare(configs[0]), tmp_path)
    top1 = tasks[0].directory.summary()["probe/linear_top1"]
    records = tasks[0].directory.rounds()
    for task in tasks[1:3]:
        task.directory.start({})
        for record in records[:2]:
            task.directory.append_round({**record, "seconds/round": 45.0})
    tasks[2].directory.fail("no luck")
    console = Console(file=io.StringIO(), force_terminal=True, width=130, height=40)
    progress = Progress([(task.directory, task.cell_hash, 6) for task in tasks], console)
    progress.running = {tasks[1].name}.copy
    progress.nodes = {tasks[1].name: "gpu7"}.copy
    console.print(progress.table())
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    cells = [line.split() for line in lines if "seed" in line]
    assert cells[0].pop(2) == "on"
    assert cells[0].pop(2) == "gpu7"
    assert [(cell[1], cell[2]) for cell in cells] == [
        ("running", "2/6"),
        ("failed", "2/6"),
        ("finished", "6/6"),
        ("waiting", "0/6"),
    ]
    assert cells[0][-1] == "3:00"
    assert cells[2][-1] == f"{100 * top1:.1f}"
    assert "1 running, 1 failed, 1 finished, 1 waiting" in "\n".join(lines)


def test_configurations_with_the_same_result_are_one_cell(tiny: Tiny, tmp_path: Path) -> None:
    tasks = prepare_cells([tiny(), tiny(tracking={"project": "other"}), tiny(seed=1)], tmp_path)
    assert [task.config.seed for task in tasks] == [0, 1]


def test_a_full_disk_fails_the_cells_and_says_so(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    for module in ("tracking.run_directory", "reporting.leaderboard", "federation.checkpoint"):
        monkeypatch.setattr(f"fedbench.{module}.write_atomically", full)
    assert run_cells([tiny(seed=0), tiny(seed=1)], tmp_path) == {"failed": 2}
    printed = capsys.readouterr()
    assert printed.err.count("FAILED, OSError: [Errno 28] No space left on device") == 2
    assert "error.txt could not be written" in printed.err
    assert "the leaderboard's files could not be written" in printed.err
    assert "No finished run" in printed.out


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"manifest.json": "{", "summary.json": "{}"}, "manifest.json is damaged"),
        ({"manifest.json": "{}", "summary.json": "x"}, "summary.json is damaged"),
        ({"summary.json": "{}", "encoder.safetensors": "dear"}, "manifest.json is missing from a finished run"),
    ],
)
def test_a_damaged_run_is_named_and_kept_and_the_rest_is_run(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str], said: str
) -> None:
    configs = [tiny(seed=0), tiny(seed=1)]
    damaged = prepare_cells(configs, tmp_path)[0].directory.path
    damaged.mkdir()
    for name, content in files.items():
        (damaged / name).write_text(content)
    assert run_cells(configs, tmp_path) == {"failed": 1, "finished": 1}
    assert f"{damaged}/{said}; remove" in capsys.readouterr().err
    assert {name: (damaged / name).read_text() for name in files} == files


def test_a_plugin_that_calls_exit_fails_its_cell_alone(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "unlucky.py"
    plugin.write_text(plugin.read_text().replace('raise RuntimeError("no luck")', "raise SystemExit(3)"))
    words = ["strategy=" + str(plugin) + ",fedssl", "--out", str(tmp_path / "out")]
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(TINY))
    assert main(["run", str(path), *words]) == 1
    assert "1 failed, 1 finished" in capsys.readouterr().err


def test_cells_that_differ_in_their_seed_alone_are_tried_once(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    monkeypatch.setattr("fedbench.federation.experiment.dry_run", lambda config, *_: tried.append(config.seed))
    configs = [tiny(optimizer={"base_lr": rate}, seed=seed) for rate in (0.1, 0.2) for seed in (3, 4)]
    assert len(prepare_cells(configs, tmp_path)) == 4
    assert tried == [3, 3]
    forecast(configs, tmp_path)
    assert tried == [3, 3, 3, 3]
    profile(configs[0])
    assert tried == [3, 3, 3, 3, 3]


def test_a_line_that_is_being_written_is_no_round_yet(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.append_round({"round": 0})
    with (tmp_path / "rounds.jsonl").open("a") as file:
        file.write('{"round": 1, "tr')
    assert directory.rounds() == [{"round": 0}]


def test_a_duration_reads_like_a_clock() -> None:
    assert [duration(seconds) for seconds in (5, 65, 7509)] == ["0:05", "1:05", "2:05:09"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(tmp_path: Path, how: signal.Signals) -> None:
    path = tmp_path / "grid.yaml"
    long = {**TINY, "federation": {**TINY["federation"], "rounds": 10_000}}  # type: ignore[dict-item]
    path.write_text(yaml.safe_dump({"base": long, "axes": {"seed": [0, 1]}}))
    command = [sys.executable, "-m", "fedbench", "run", "--grid", str(path), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*command, "--jobs", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell ignores it in the background
    )
    end = time.monotonic() + 120
    while len(list((tmp_path / "out").glob("*/rounds.jsonl"))) < 2 and time.monotonic() < end:
        time.sleep(0.1)
    if how == signal.SIGKILL:
        process.send_signal(how)
    else:
        os.killpg(process.pid, how)  # as a terminal does, and a cluster
    try:
        _, text = process.communicate(timeout=60)
        assert ends(process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[how]
    assert {signal.SIGKILL: b"", signal.SIGINT: b"interrupted", signal.SIGTERM: b"was stopped"}[how] in text
    assert b"Traceback" not in text


@pytest.mark.exhaustive
@pytest.mark.parametrize(("grace", "rounds_kept"), [("60", "the one under way too"), ("0.1", "those before it")])
def test_sigterm_lets_a_round_end_that_ends_in_time(tmp_path: Path, grace: str, rounds_kept: str) -> None:
    plugin = tmp_path / "slow.py"
    plugin.write_text(
        "import time\nfrom pathlib import Path\nfrom fedbench.methods.federation.fedssl import FedSSL\n"
        "class Slow(FedSSL):\n"
        "    def aggregate(self, updates, server):\n"
        "        values = super().aggregate(updates, server)\n"
        "        if server.round_index == 1:\n"
        f"            Path({str(tmp_path / 'mark')!r}).touch()\n"
        "            time.sleep(5)\n"
        "        return values\n"
    )
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**TINY, "strategy": str(plugin)}))
    command = [sys.executable, "-m", "fedbench", "run", str(config), "--out", str(tmp_path / "out")]
    process = subprocess.Popen([*command, "--grace", grace], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while not (tmp_path / "mark").exists() and time.monotonic() < end:
        time.sleep(0.05)
    process.terminate()
    _, text = process.communicate(timeout=60)
    assert process.returncode == 143
    assert b"the same command goes on after the last whole round" in text
    (rounds,) = (tmp_path / "out").glob("*/rounds.jsonl")
    assert len(rounds.read_text().splitlines()) == (2 if rounds_kept == "the one under way too" else 1)


def ends(group: int) -> bool:
    """Whether no process of the group runs any more within two seconds; a dead one may wait for its reaper."""
    for _ in range(20):
        table = subprocess.check_output(["ps", "-A", "-o", "pgid=,stat="], text=True)
        states = [line.split()[1] for line in table.splitlines() if line.split()[0] == str(group)]
        if all(state.startswith("Z") for state in states):
            return True
        time.sleep(0.1)
    return False
