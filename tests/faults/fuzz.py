"""A plain-mutation fuzzer: `python tests/faults/fuzz.py --inputs 100000` throws as many at each kind of input.

Same seed, same inputs. Each target runs in a process of its own, so that its memory can be told. It prints a
table, saves one small example of every cause of a traceback, and exits with 1 if there is one, if an input took
more than two seconds of the processor, or if memory grew by more than 200 MB.
"""

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz_targets import SENTENCES, Target, targets

MAX_SECONDS, MAX_GROWTH = 2.0, 200.0  # of one input; MB of one target
HANGS = 30  # seconds by the clock after which an input counts as one that hangs


class HangError(Exception):
    """An input has no answer."""


class Outcome(NamedTuple):
    """Of one input: what went wrong, or "", and how long it took."""

    fault: str
    seconds: float


def tried(target: Target, data: bytes) -> Outcome:
    """Whether an input ends in a sentence, and in how many seconds of the processor."""
    begin = time.process_time()
    fault = ""
    signal.setitimer(signal.ITIMER_REAL, HANGS)
    try:
        target.read(data)
    except SENTENCES as error:
        if len(longest := max(str(error).splitlines(), key=len, default="")) > 1000:
            fault = f"a line of more than 1,000 characters: {longest[:60]} ..."
    except Exception as error:
        fault = cause(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return Outcome(fault, time.process_time() - begin)


def cause(error: Exception) -> str:
    """Kind of an error and the last of our own lines that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/fedbench/" in frame.filename or "/methods/" in frame.filename] or frames
    place = f"{Path(own[-1].filename).name}:{own[-1].lineno} ({own[-1].name})"
    return f"{type(error).__name__} at {place}: {str(error)[:80]!r}"


def key_of(fault: str) -> str:
    """Without the message: two inputs of one cause are one finding."""
    return fault.partition("):")[0]


def smaller(target: Target, data: bytes, fault: str, tries: int = 300) -> bytes:
    """A shorter input of the same cause."""
    size = len(data) // 2
    while size and tries:
        for start in range(0, len(data), size):
            candidate, tries = data[:start] + data[start + size :], tries - 1
            if key_of(tried(target, candidate).fault) == key_of(fault):
                data = candidate
                break
            if not tries:
                break
        else:
            size //= 2
    return data


def measure(name: str, inputs: int, seed: int, out: Path) -> dict[str, Any]:
    """Throw `inputs` at a target, in this process."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        target = targets(Path(folder))[name]()
        draw, found, slowest = Random(f"{name} {seed}"), dict[str, str](), (0.0, b"")
        for data in target.seeds:
            tried(target, data)
        for _ in range(min(300, inputs)):  # what is imported or kept once is no growth
            tried(target, target.draw(draw))
        before, begin = peak(), time.perf_counter()
        for _ in range(inputs):
            data = target.draw(draw)
            outcome = tried(target, data)
            slowest = max(slowest, (outcome.seconds, data))
            if outcome.fault and key_of(outcome.fault) not in found:
                found[key_of(outcome.fault)] = outcome.fault
                (out / f"{name}-{len(found)}.bin").write_bytes(smaller(target, data, outcome.fault))
        seconds = time.perf_counter() - begin
        (out / f"{name}-slowest.bin").write_bytes(slowest[1])
        growth = peak() - before
    facts = {"inputs": inputs, "slowest": slowest[0], "growth": growth, "seconds": seconds}
    return {"name": name, "faults": list(found.values()), **facts}


def peak() -> float:
    """Resident memory at its highest, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _hangs(*_: object) -> None:
    raise HangError(f"no answer in {HANGS} s")


def in_a_process(name: str, options: argparse.Namespace) -> dict[str, Any]:
    words = [sys.executable, __file__, "--one", name, "--inputs", str(options.inputs), "--seed", str(options.seed)]
    done = subprocess.run([*words, "--out", str(options.out)], capture_output=True, text=True, check=False)
    if done.returncode:
        died = [f"the process died ({done.returncode}): {done.stderr[-300:]}"]
        return {"name": name, "faults": died, "inputs": 0, "slowest": 0.0, "growth": 0.0, "seconds": 0.0}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: {found['seconds']:.0f} s", file=sys.stderr, flush=True)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| input | inputs | causes of tracebacks | slowest, s | memory growth, MB | inputs a second |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        rate = row["inputs"] / max(row["seconds"], 1e-9)
        figures = f"{row['slowest']:.3f} | {row['growth']:.0f} | {rate:,.0f}"
        lines.append(f"| {row['name']} | {row['inputs']:,} | {len(row['faults'])} | {figures} |")
    return "\n".join(lines)


def is_good(row: dict[str, Any]) -> bool:
    """Whether a target kept to its limits."""
    return not row["faults"] and row["slowest"] <= MAX_SECONDS and row["growth"] <= MAX_GROWTH


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="TARGET")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "fedbench-fuzz")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    asked = options()
    asked.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGALRM, _hangs)
    if asked.one:
        warnings.simplefilter("ignore")
        with Path(os.devnull).open("w") as nothing, contextlib.redirect_stderr(nothing):
            found = measure(asked.one, asked.inputs, asked.seed, asked.out)
        print(json.dumps(found))
        return 0
    names = asked.only or list(targets(Path()))
    with ThreadPoolExecutor(asked.jobs) as pool:
        rows = list(pool.map(lambda name: in_a_process(name, asked), names))
    print(table(rows))
    for row in rows:
        print(*(f"\n{row['name']}: {fault}" for fault in row["faults"]), sep="", end="")
    print(f"\nExamples are in {asked.out}.")
    return int(not all(map(is_good, rows)))


if __name__ == "__main__":
    sys.exit(main())
