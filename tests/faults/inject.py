"""Faults, injected one after the other: does a run survive each, and does it end with the bits of one without any?

    python tests/faults/inject.py [--share 1]

A table: what was injected, how often, how often the same command went on or the fault was told, and how often the
results were equal in the end. `--share 7`: every seventh fault.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from inject_files import (
    cut,
    every_file_of_a_finished_run,
    every_file_of_a_stopped_run,
    flipped,
    full_at_every_write,
    slow,
)
from inject_processes import no_memory, signals, two_commands, workers
from suffering import Line, config, result

from fedbench.federation.experiment import prepare
from fedbench.running.cell import run_cell


def inject(out: Path, share: int) -> Iterator[Line]:
    """Faults within this process: all, or every `share`-th of each kind."""
    run_cell(prepare(config()), out / "a")
    whole = result(out / "a")
    yield full_at_every_write(out, whole, share)
    yield slow(out, whole)
    yield every_file_of_a_stopped_run(out, whole, share, flipped)
    yield every_file_of_a_stopped_run(out, whole, share, cut)
    yield every_file_of_a_finished_run(out, whole, share)
    yield no_memory(out, whole, share)


def inject_processes(out: Path, share: int) -> Iterator[Line]:
    """Faults of whole processes, behind those of `inject`, which leaves the run without faults."""
    whole = result(out / "a")
    yield workers(out, whole, share, signal.SIGKILL)
    yield workers(out, whole, share, signal.SIGSTOP)
    yield two_commands(out, whole, share)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        yield signals(out, whole, share, number)


def main() -> int:
    """Print the table; 1 if a fault was not survived, or changed a result."""
    words = argparse.ArgumentParser()
    words.add_argument("--share", type=int, default=1)
    share, right = words.parse_args().share, True
    print("| fault | injected | survived | results equal |\n|---|--:|--:|--:|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for kind in (inject, inject_processes):
            for line in kind(Path(folder), share):
                print(f"| {' | '.join(map(str, line))} |", flush=True)
                right = right and line.injected == line.survived == line.equal
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
