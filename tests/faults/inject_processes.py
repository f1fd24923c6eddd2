"""Faults of processes: signals, two commands for one folder, workers that die or stop, memory that runs out."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from suffering import CHANGES, VISITS, Line, config, result
from tiny_config import TINY

from fedbench.federation.client import Worker
from fedbench.federation.engines.processes import Remote
from fedbench.federation.experiment import prepare
from fedbench.federation.protocol import Visit
from fedbench.federation.server import Server
from fedbench.running.cell import run_cell

KILLS = 20


def command(out: Path, name: str) -> list[str]:
    """That runs the cell, into the folder `name`."""
    file = out / "config.yaml"
    file.write_text(yaml.safe_dump({**TINY, **CHANGES}))
    return [sys.executable, "-m", "fedbench", "run", str(file), "--out", str(out / name)]


def start(words: list[str]) -> subprocess.Popen[bytes]:
    """Without a word."""
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def signals(out: Path, whole: tuple[Any, ...], share: int, number: signal.Signals) -> Line:
    """The process gets a signal at random moments; then the same command is let be."""
    draw, times, survived, equal = random.Random(0), max(1, KILLS // share), 0, 0
    expected = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    words = command(out, number.name)
    for _ in range(times):
        shutil.rmtree(out / number.name, ignore_errors=True)
        process = start(words)
        while process.poll() is None and not list((out / number.name).glob("*/manifest.json")):
            time.sleep(0.005)
        time.sleep(draw.random() * 0.5)
        process.send_signal(number)
        code = process.wait()
        survived += code in (expected, 0) and start(words).wait() == 0
        equal += result(out / number.name) == whole
    return Line(f"{number.name} at random moments", times, survived, equal)


def two_commands(out: Path, whole: tuple[Any, ...], share: int) -> Line:
    """The same command twice at once: 4 says that another process runs it."""
    times, survived, equal = max(1, KILLS // 4 // share), 0, 0
    for number in range(times):
        both = [start(command(out, f"two{number}")) for _ in range(2)]
        survived += sorted(process.wait() for process in both) in ([0, 0], [0, 4])
        equal += result(out / f"two{number}") == whole
    return Line("two commands for one folder", times, survived, equal)


def workers(out: Path, whole: tuple[Any, ...], share: int, blow: signal.Signals) -> Line:
    """A worker gets a signal before it is sent the n-th visit, for every n; if it is stopped, it has a second."""
    numbers, survived, equal = range(VISITS)[::share], 0, 0
    for number in numbers:
        sent, real = [0], Remote.send

        def send(self: Remote, visit: Visit, server: Server, patience: float) -> None:
            chosen = sent[0] == number  # noqa: B023  (called while `number` is this one)
            sent[0] += 1  # noqa: B023
            if chosen:
                assert self.process.pid is not None
                os.kill(self.process.pid, blow)
            real(self, visit, server, 1.0 if chosen else patience)  # noqa: B023

        copy = out / f"worker {blow.name} {number}"
        with patch.object(Remote, "send", send):
            words = run_cell(prepare(config(engine="processes", workers=2)), copy).words
        survived += sent[0] == VISITS + 1 and words != ""
        equal += result(copy) == whole
    return Line(f"{blow.name} to a worker, at every visit", len(numbers), survived, equal)


def no_memory(out: Path, whole: tuple[Any, ...], share: int) -> Line:
    """Memory runs out while the n-th client trains, for every n; then the same command."""
    visits, survived, equal, real = range(VISITS)[::share], 0, 0, Worker.train
    for visit in visits:
        trained = [0]

        def train(self: Worker, *words: Any) -> Any:
            trained[0] += 1  # noqa: B023  (called while `visit` is this one)
            if trained[0] == visit + 1:  # noqa: B023
                raise MemoryError
            return real(self, *words)

        copy = out / f"memory{visit}"
        with patch.object(Worker, "train", train):
            try:
                run_cell(prepare(config()), copy)
            except MemoryError:
                survived += 1
        run_cell(prepare(config()), copy)
        equal += result(copy) == whole
    return Line("no memory, in every visit", len(visits), survived, equal)
