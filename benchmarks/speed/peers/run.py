"""Peers on the same work: small clients in fedbench, in pfl and in Flower's simulation, with equally many workers.

    python benchmarks/speed/peers/run.py [--flower PYTHON] [--pfl PYTHON] [--clients 100] [--size small]
        [--workers 1 2] [--threads N] [--rounds 10] [--warm-up 2]

Needs Linux, psutil (`requirements.txt`) and, for fedbench on Ray, the extra `ray`. `PYTHON` is the interpreter of
the peer's own environment, made by `pip install . -r benchmarks/speed/peers/requirements-flower.txt` (or
`-pfl.txt`) without `constraints.txt`, which pins what the peers refuse. A peer without a `PYTHON` is left out. All
import fedbench for model, views and local training. Without `--threads`, workers share two cores.

For each number of workers all contestants are started, and then take turns, a round each: while one trains, the
others wait. The first rounds (`--warm-up`), with that of the start, are not counted.

- clients/s: median, and range over the turns.
- of the bare loop: clients/s over those of the bare loop, one process, in the same turn.
- beyond it: core time of a client less the bare loop's, in ms, in the same turn: seconds of the round times the
  cores that the workers can use (two at most), over the clients.
- start-up: from the command to the end of the first round, less the median round. Imports, processes, data, and
  what a first round costs beyond another. The images are on disk before.
- memory: the largest sum over the tree of processes, in which a page that n of them share counts 1/n for each
  (PSS), and the processes above 100 MiB. Sampled every 0.1 s in a second, shorter run, without the others.
- clients: that trained in the last round. moved: L2 distance of the weights from the start after all rounds.
  The bare loop, pfl and Flower agree there to a fraction of a per cent; fedbench draws anew in every round. With
  1,000 clients and more the bare loop and Flower, which add up weights in float32, round away more than training
  moves; pfl adds differences, and fedbench in float64.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from threading import Thread
from time import perf_counter, sleep
from typing import Any, NamedTuple

import psutil

HERE = Path(__file__).parent
CORES = 2
MEMORY_ROUNDS = 1
PRIVATE = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}  # they report home otherwise
MARK = "ROUND "  # what a line of `workload.py`'s report begins with
LISTED = 100 << 20  # bytes of a process that is named by itself


class Contestant(NamedTuple):
    """How it is started: a command and, as JSON behind it, its `workload.Work`."""

    name: str
    command: list[str]
    work: dict[str, Any]

    def line(self, **changes: Any) -> list[str]:
        """The whole command."""
        return [*self.command, json.dumps(self.work | changes)]


def contestants(flower: str | None, pfl: str | None, work: dict[str, Any]) -> Iterator[Contestant]:
    """Those with so many workers, the bare loop first."""
    workers, own = work["workers"], [sys.executable, "fedbench_itself.py"]
    yield Contestant("bare loop", [sys.executable, "bare_loop.py"], work | {"workers": 1})
    if workers == 1:
        yield Contestant("fedbench, in_process", own, work)
    yield Contestant("fedbench, processes", own, work | {"engine": "processes"})
    yield Contestant("fedbench, ray", own, work | {"engine": "ray"})
    if pfl:
        torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={workers}"] if workers > 1 else []
        yield Contestant("pfl", [pfl, *torchrun, "pfl_peer.py"], work)
    if flower:
        yield Contestant("Flower", [flower, "flower.py"], work)


class Running:
    """A contestant at work; `seconds` of each turn, the first from the command on; its latest `report`."""

    def __init__(self, line: list[str]) -> None:
        self.line = line
        paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        descriptor, name = tempfile.mkstemp(suffix=".txt")
        self._errors = Path(name)
        self._start = perf_counter()
        self.process = subprocess.Popen(
            line,
            cwd=HERE,
            env={**os.environ, **PRIVATE, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=descriptor,
            text=True,
        )
        os.close(descriptor)
        self.seconds: list[float] = []
        self.report: dict[str, float] = {}

    def turn(self) -> None:
        """Let it train a round; it begins the first by itself."""
        go, told = self.process.stdin, self.process.stdout
        assert go is not None
        assert told is not None
        if self.seconds:
            self._start = perf_counter()
            go.write("\n")
            go.flush()
        for line in told:
            if line.startswith(MARK):
                self.seconds.append(perf_counter() - self._start)
                self.report = json.loads(line.removeprefix(MARK))
                return
        raise SystemExit(f"{' '.join(self.line)}\n{self._errors.read_text()}")

    def end(self) -> None:
        """After its last turn it ends by itself."""
        try:
            self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._errors.unlink(missing_ok=True)


def tree_memory(root: int) -> list[int]:
    """PSS in bytes of a process and all that it has started, the largest first."""
    found = []
    try:
        for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
            try:
                found.append(process.memory_full_info().pss)
            except psutil.Error:  # it has ended
                continue
    except psutil.NoSuchProcess:
        pass
    return sorted(found, reverse=True)


def memory(one: Contestant) -> str:
    """The largest sum, and what it is made of, in MiB."""
    running = Running(one.line(rounds=MEMORY_ROUNDS))
    samples: list[list[int]] = [[]]

    def watch() -> None:
        while running.process.poll() is None:
            samples.append(tree_memory(running.process.pid))
            sleep(0.1)

    Thread(target=watch).start()
    for _ in range(MEMORY_ROUNDS):
        running.turn()
    running.end()
    largest = max(samples, key=sum)
    named = [f"{size / 2**20:.0f}" for size in largest if size >= LISTED]
    rest = sum(size for size in largest if size < LISTED)
    others = f", others {rest / 2**20:.0f}" if rest > 1 << 20 else ""
    return f"{sum(largest) / 2**20:.0f} ({' + '.join(named)}{others})"


def row(one: Contestant, own: Running, bare: Running, rounds: int) -> str:
    """A line of the table, from the last `rounds` turns."""
    clients, cores = one.work["clients"], min(one.work["workers"], CORES)
    turns = list(zip(own.seconds[-rounds:], bare.seconds[-rounds:], strict=True))
    rates = [clients / seconds for seconds, _ in turns]
    ratios = [theirs / seconds for seconds, theirs in turns]
    beyond = [1000 * (seconds * cores - theirs) / clients for seconds, theirs in turns]
    cells = [
        one.name,
        f"{one.work['workers']} x {one.work['threads']}",
        f"{median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})",
        f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        f"{median(beyond):.1f}" if own is not bare else "",
        f"{own.seconds[0] - clients / median(rates):.1f}",
        memory(one),
        f"{own.report['clients']:.0f}",
        f"{own.report['moved']:.3e}",
    ]
    return f"| {' | '.join(cells)} |"


def contest(those: list[Contestant], rounds: int) -> None:
    """Turns of all, then memory of each."""
    with ExitStack() as ends:
        running = []
        for one in those:
            running.append(Running(one.line()))
            ends.callback(running[-1].end)
            running[-1].turn()
        for _ in range(those[0].work["rounds"] - 1):
            for own in running:
                own.turn()
    for one, own in zip(those, running, strict=True):
        print(row(one, own, running[0], rounds), flush=True)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flower")
    parser.add_argument("--pfl")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--size", choices=("small", "smallest"), default="small")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", default="", help="the bare loop, and contestants whose name contains this")
    asked = parser.parse_args()
    columns = (
        "workers x threads | clients/s | of the bare loop | beyond it, ms | start-up, s | memory, MiB | clients"
    )
    print(f"| | {columns} | moved |\n|---|--:|--:|--:|--:|--:|---|--:|--:|", flush=True)
    for workers in asked.workers:
        with tempfile.TemporaryDirectory() as folder:
            work = {
                "folder": folder,
                "size": asked.size,
                "clients": asked.clients,
                "rounds": asked.rounds + asked.warm_up,
                "engine": "in_process",
                "workers": workers,
                "threads": asked.threads or max(1, CORES // workers),
            }
            bare, *others = contestants(asked.flower, asked.pfl, work)
            contest([bare, *(one for one in others if asked.only in one.name)], asked.rounds)


if __name__ == "__main__":
    main()
