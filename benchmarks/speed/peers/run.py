"""Peers on the same work: the clients of `small_clients.py` in fedbench, in pfl and in Flower's simulation.

    python benchmarks/speed/peers/run.py [--flower PYTHON] [--pfl PYTHON] [--rounds 10]

Needs Linux and psutil (`requirements.txt`). `PYTHON` is the interpreter of the peer's own environment, made by
`pip install . -r benchmarks/speed/peers/requirements-flower.txt` (or `-pfl.txt`) without `constraints.txt`, which
pins what the peers refuse. A peer without a `PYTHON` is left out. Every contestant has two cores and processes of
its own, all of which import fedbench for model, views and local training.

- s per round: median, and range, of the rounds after two that warm up; between the ends of the rounds.
- start-up: from the command to the end of the first round, less the median round. Imports, processes, data, and
  what a first round costs beyond another. The images are on disk before.
- peak memory: the largest sum over the tree of processes, in which a page that n of them share counts 1/n for each
  (PSS). Sampled every 0.1 s in a second, shorter run, because that takes time from a round.
- clients: that trained in the last round. moved: L2 distance of the weights from the start after all rounds.
  The bare loop, pfl and Flower agree there to a fraction of a per cent; fedbench draws anew in every round.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from threading import Thread
from time import perf_counter, sleep

import psutil

HERE = Path(__file__).parent
WARM_UP, MEMORY_ROUNDS = 2, 3
PRIVATE = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}  # they report home otherwise
MARK = "ROUND "  # what a line of `workload.py`'s report begins with
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2"]


def contestants(flower: str | None, pfl: str | None) -> dict[str, tuple[list[str], int]]:
    """Name -> command, without its arguments, and number of processes that train."""
    own = sys.executable
    found = {
        "bare loop, 2 threads": ([own, "bare_loop.py"], 1),
        "fedbench, in_process, 2 threads": ([own, "fedbench_itself.py"], 1),
        "fedbench, processes, 2 x 1 thread": ([own, "fedbench_itself.py"], 2),
    }
    if pfl:
        found["pfl, 2 threads"] = ([pfl, "pfl_peer.py"], 1)
        found["pfl, torchrun, 2 x 1 thread"] = ([pfl, *TORCHRUN, "pfl_peer.py"], 2)
    if flower:
        found["Flower, 2 x 1 thread"] = ([flower, "flower.py"], 2)
    return found


def tree_memory(root: int) -> int:
    """PSS in bytes of a process and all that it has started."""
    total = 0
    try:
        for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:  # it has ended
                continue
    except psutil.NoSuchProcess:
        pass
    return total


def watch(process: subprocess.Popen[str], samples: list[int]) -> None:
    """Sample memory until the process ends."""
    while process.poll() is None:
        samples.append(tree_memory(process.pid))
        sleep(0.1)


def run(command: list[str], samples: list[int] | None = None) -> tuple[list[float], dict[str, float]]:
    """Seconds from the start to the end of each round, and the last report. Fills `samples`, if there are any."""
    ends, report = [], {}
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **PRIVATE, "PYTHONPATH": paths}
    with tempfile.TemporaryFile("w+") as errors:
        start = perf_counter()
        process = subprocess.Popen(
            command, cwd=HERE, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        if samples is not None:
            Thread(target=watch, args=(process, samples)).start()
        for line in process.stdout:
            if line.startswith(MARK):
                ends.append(perf_counter() - start)
                report = json.loads(line.removeprefix(MARK))
        if process.wait():
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)}\n{errors.read()}")
    return ends, report


def measure(command: list[str], processes: int, folder: str, rounds: int) -> str:
    """A row of the table, without the name."""
    ends, report = run([*command, folder, str(rounds + WARM_UP), str(processes)])
    seconds = [after - before for before, after in zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False)]
    steady, spread = median(seconds), f"{min(seconds):.2f} to {max(seconds):.2f}"
    samples: list[int] = []
    run([*command, folder, str(MEMORY_ROUNDS), str(processes)], samples)
    memory = f"{max(samples) / 2**20:.0f}"
    checks = f"{report['clients']:.0f} | {report['moved']:.3e}"
    return f"{steady:.2f} ({spread}) | {ends[0] - steady:.1f} | {memory} | {checks}"


def main() -> None:
    """Print a line for each contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flower")
    parser.add_argument("--pfl")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", default="", help="contestants whose name contains this")
    asked = parser.parse_args()
    print("| | s per round | start-up, s | peak memory, MiB | clients | moved |\n|---|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for name, (command, processes) in contestants(asked.flower, asked.pfl).items():
            if asked.only in name:
                print(f"| {name} | {measure(command, processes, folder, asked.rounds)} |", flush=True)


if __name__ == "__main__":
    main()
