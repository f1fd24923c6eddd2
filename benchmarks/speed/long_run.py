"""Two thousand rounds of the smallest configuration: does anything grow, and how long does a resume take?

    python benchmarks/speed/long_run.py [--rounds 2000] [--padded 100000]

A line for every tenth of the rounds: resident memory, open files, threads, milliseconds a round. Then the record
is padded to 100,000 rounds, and a resume is timed.
"""

import argparse
import os
import tempfile
import threading
import time
from hashlib import sha256
from pathlib import Path

from fedbench.api import federate
from fedbench.config import load_config
from fedbench.federation import checkpoint
from fedbench.federation.checkpoint import Checkpoint
from fedbench.tracking.client_rows import head
from fedbench.tracking.run_directory import CLIENT_ROWS, GROWING, LEDGER, ROUNDS

SMALLEST = {
    "ssl": {"name": "simclr", "hidden_dim": 8, "output_dim": 4},
    "encoder": {"name": "vit", "image_size": 8, "patch_size": 4, "width": 8, "depth": 1, "heads": 1},
    "data": {"name": "digits", "num_train": 16},
    "federation": {"num_clients": 2, "local_epochs": 1},
    "optimizer": {"batch_size": 8},
    "probe": {"epochs": 1},
    "accelerator": "cpu",
    "threads": 1,
    "tracking": {"wandb": "disabled"},
}


def main() -> None:
    """Run, and print the tables."""
    words = argparse.ArgumentParser()
    words.add_argument("--rounds", type=int, default=2000)
    words.add_argument("--padded", type=int, default=100_000)
    asked = words.parse_args()
    config = load_config(SMALLEST, {"federation": {"rounds": asked.padded}})
    with tempfile.TemporaryDirectory() as folder:
        rounds = federate(config, out=folder)
        print("| rounds | memory MiB | open files | threads | ms a round |\n|--:|--:|--:|--:|--:|")
        start, part = time.perf_counter(), max(1, asked.rounds // 10)
        for number in range(1, asked.rounds + 1):
            next(rounds)
            if number % part == 0:
                took = 1000 * (time.perf_counter() - start) / part
                open_files = len(list(Path("/proc/self/fd").iterdir()))
                print(
                    f"| {number} | {memory():.0f} | {open_files} | {threading.active_count()} | {took:.1f} |",
                    flush=True,
                )
                start = time.perf_counter()
        rounds.close()
        (path,) = (one for one in Path(folder).iterdir() if one.is_dir())
        pad(path, asked.padded - 1)
        start = time.perf_counter()
        next(federate(config, out=folder))
        size = (path / ROUNDS).stat().st_size / 2**20
        print(
            f"\nResumed and trained a round after {asked.padded - 1:,} ({size:.0f} MiB of records): "
            f"{time.perf_counter() - start:.1f} s"
        )


def memory() -> float:
    """Resident, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def pad(path: Path, rounds: int) -> None:
    """Let the run have done so many rounds: its last record again and again."""
    last = checkpoint.load(path / checkpoint.NAME)
    line = (path / ROUNDS).read_bytes().splitlines(keepends=True)[-1]
    clients, ledger = (path / CLIENT_ROWS).read_bytes()[len(head()) :], (path / LEDGER).read_bytes()
    missing = rounds - last.facts["rounds_done"]
    with (path / ROUNDS).open("ab") as file:
        file.writelines(line for _ in range(missing))
    for name, done in ((CLIENT_ROWS, clients), (LEDGER, ledger)):
        with (path / name).open("ab") as file:
            file.write(done * (missing // last.facts["rounds_done"]))
    marks = {
        name: [(path / name).stat().st_size, sha256((path / name).read_bytes()).hexdigest()] for name in GROWING
    }
    facts = {**last.facts, "rounds_done": rounds, "marks": marks}
    Checkpoint(last.cell_hash, facts, last.tensors).write(path)


if __name__ == "__main__":
    main()
