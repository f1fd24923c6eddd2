"""100 small clients a round: what the harness adds to a bare loop, and what worker processes take away.

    python benchmarks/speed/small_clients.py [--rounds 8] [--clients 100]

Every client has 16 images (32 x 32) and takes one step of SimCLR on a ViT of width 48, depth 2, patch 4; all of
them in every round. In turn: a round of the bare loop (two threads; loads the model, trains), of the engine
`in_process` (two threads) and of the engine `processes` (two workers of one thread). Aims: at most 1.1x and 0.7x
the bare loop. The first two rounds warm up.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from bare import bare_fit

from fedbench.config import Config, load_config
from fedbench.federation.experiment import Experiment, prepare
from fedbench.federation.federation import Federation
from fedbench.training.model import build_model

WARM_UP = 2


class Small(NamedTuple):
    """A client that takes one step on `samples` random images."""

    samples: int
    ssl: dict[str, Any]
    encoder: dict[str, Any]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        size = self.encoder["image_size"]
        return size, size, self.encoder["in_channels"]


SMALL = Small(
    16,
    {"name": "simclr", "hidden_dim": 128, "output_dim": 64},
    {"width": 48, "depth": 2, "heads": 3, "patch_size": 4, "image_size": 32, "in_channels": 3},
)


def configure(clients: int, rounds: int, folder: Path, size: Small = SMALL, **engine: object) -> Config:
    """The workload, on random images that are written to `folder`."""
    file, total = folder / "images.npz", size.samples * clients
    if not file.exists():
        draw = np.random.default_rng(0)
        images = draw.integers(0, 256, (total + 40, *size.image_shape), dtype=np.uint8)
        labels = np.arange(total + 40) % 4
        parts = {"test_images": images[total:], "test_labels": labels[total:]}
        np.savez(file, images=images[:total], labels=labels[:total], **parts)
    tree = {
        "ssl": size.ssl,
        "encoder": size.encoder,
        "data": {"name": "npz", "path": str(file)},
        "federation": {"num_clients": clients, "rounds": rounds, "local_epochs": 1},
        "optimizer": {"batch_size": size.samples},
        "accelerator": "cpu",
    }
    return load_config(tree, engine)


def bare_rounds(experiment: Experiment) -> Iterator[None]:
    """Rounds of the bare loop: every client starts from the same values."""
    config = experiment.config
    model = build_model(config, config.encoder.depth)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    while True:
        for client, indices in enumerate(experiment.client_indices):
            model.load_state_dict(start)
            bare_fit(model, experiment.dataset.train_images, indices, experiment.views, config, client)
        yield


def main() -> None:
    """Print milliseconds per client, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--clients", type=int, default=100)
    asked = parser.parse_args()
    with ExitStack() as ends, tempfile.TemporaryDirectory() as folder:
        where, rounds = Path(folder), asked.rounds + WARM_UP
        alone = prepare(configure(asked.clients, rounds, where, threads=2))
        shared = prepare(configure(asked.clients, rounds, where, threads=1, engine="processes", workers=2))
        federations = [ends.enter_context(closing(Federation(one, where))) for one in (alone, shared)]
        contestants: list[Iterator[object]] = [bare_rounds(alone), *(one.rounds() for one in federations)]
        times: list[list[float]] = [[], [], []]
        for _ in range(rounds):
            for contestant, threads, seconds in zip(contestants, (2, 2, 1), times, strict=True):
                torch.set_num_threads(threads)  # as a run does
                start = perf_counter()
                next(contestant)
                seconds.append(1000 * (perf_counter() - start) / asked.clients)
    bare, *others = (seconds[WARM_UP:] for seconds in times)
    print(f"bare loop: {median(bare):.1f} ms a client")
    for name, seconds in zip(("in_process", "processes, 2 workers"), others, strict=True):
        ratios = [ours / theirs for ours, theirs in zip(seconds, bare, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{name}: {median(seconds):.1f} ms a client, ratio {median(ratios):.2f} ({spread})")


if __name__ == "__main__":
    main()
