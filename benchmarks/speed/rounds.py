"""What a round costs beyond its local training: payloads, bookkeeping, aggregation, the files, the mirror.

    python benchmarks/speed/rounds.py [--rounds 8]

Aims: at ViT-Tiny a whole round at most 1.05x the sum of its local trainings; at the quick start's size at most
2 ms per client beyond them. Whole runs as `python -m fedbench run` does them, with their directory and an offline
W&B mirror; local training (`training.local.fit`) is timed where it is called, everything else is the harness:
the round's own work (payloads, load, encode, check, aggregate, diagnostics), and what follows it,
files and mirror.
"""

import argparse
import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from sizes import QUICK_START, VIT_TINY

from fedbench.config import Config
from fedbench.federation import client, federation
from fedbench.federation.experiment import prepare
from fedbench.running import cell as runner

WARM_UP = 2


def images(path: Path, config: Config, samples: int) -> None:
    """Random images for every client, and a few to be scored on."""
    encoder, total = config.encoder, samples * config.federation.num_clients
    draw, side = np.random.default_rng(0), encoder.image_size
    values = draw.integers(0, 256, (total + 8, side, side, encoder.in_channels), dtype=np.uint8)
    labels = np.arange(total + 8) % 4
    tests = {"test_images": values[total:], "test_labels": labels[total:]}
    np.savez(path, images=values[:total], labels=labels[:total], **tests)


@contextlib.contextmanager
def timed_training() -> Iterator[list[float]]:
    """Seconds of every local training."""
    seconds: list[float] = []
    fit = client.fit

    def timed(*arguments: object) -> int:
        start = perf_counter()
        steps = fit(*arguments)
        seconds.append(perf_counter() - start)
        return steps

    client.fit = timed
    yield seconds
    client.fit = fit


@contextlib.contextmanager
def timed_rounds() -> Iterator[tuple[list[float], list[float]]]:
    """When the rounds ended, for the runner, and the seconds of each by itself, without files and mirror."""
    ends: list[float] = []
    alone: list[float] = []
    rounds = federation.Federation.rounds

    def timed(self: federation.Federation) -> Iterator[object]:
        for record in rounds(self):
            ends.append(perf_counter())
            alone.append(record.seconds["round"])
            yield record

    federation.Federation.rounds = timed
    yield ends, alone
    federation.Federation.rounds = rounds


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    rounds = parser.parse_args().rounds + WARM_UP
    for name, size, clients in (("quick start", QUICK_START, 3), ("ViT-Tiny, one step", VIT_TINY, 2)):
        with tempfile.TemporaryDirectory() as folder, timed_training() as trained, timed_rounds() as (ends, alone):
            where = Path(folder)
            run = {
                "data": {"name": "npz", "path": str(where / "images.npz")},
                "federation": {"num_clients": clients, "rounds": rounds},
                "probe": {"epochs": 1},
            }
            config = size.configure(run)
            images(where / "images.npz", config, size.samples)
            torch.set_num_threads(config.threads)
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                runner.run_cell(prepare(config), where / "runs")
        whole = [after - before for before, after in zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False)]
        local = [sum(trained[clients * n : clients * (n + 1)]) for n in range(WARM_UP, rounds)]
        print(
            f"{name}, {clients} clients: training {1000 * median(local) / clients:.1f} ms a client; "
            f"round / training {median(a / b for a, b in zip(alone[WARM_UP:], local, strict=True)):.3f}, "
            f"with files and mirror {median(a / b for a, b in zip(whole, local, strict=True)):.3f}"
        )
        for part, seconds in (("the round's own work", alone[WARM_UP:]), ("with files and mirror", whole)):
            beyond = [1000 * (a - b) / clients for a, b in zip(seconds, local, strict=True)]
            print(f"  {part}: {median(beyond):.2f} ms a client ({min(beyond):.2f} to {max(beyond):.2f})")


if __name__ == "__main__":
    main()
