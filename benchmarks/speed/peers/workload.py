"""What all contestants have in common: clients, model, local training, turns, and how a round is reported.

Clients, images and models are those of `small_clients.py` and a still smaller one; local training is `bare_fit`. A
contestant is started as `FILE WORK`, `WORK` a `Work` as JSON.
"""

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from bare import bare_fit
from small_clients import SMALL, Small, configure
from torch import Tensor

from fedbench.federation.experiment import prepare
from fedbench.training.model import build_model

SMALLEST = Small(
    4,
    {"name": "simclr", "hidden_dim": 16, "output_dim": 8},
    {"width": 12, "depth": 1, "heads": 1, "patch_size": 4, "image_size": 8, "in_channels": 1},
)
SIZES = {"small": SMALL, "smallest": SMALLEST}
MARK = "ROUND "  # what a line of a report begins with


class Work(NamedTuple):
    """What a contestant is asked to do.

    Attributes:
        folder: for the images.
        engine: fedbench's.
        workers: that train, each with `threads`.
    """

    folder: str
    size: str
    clients: int
    rounds: int
    engine: str
    workers: int
    threads: int

    @property
    def text(self) -> str:
        """For a command line, or where a framework passes on plain values."""
        return json.dumps(self._asdict())


class Workload:
    """The clients' data, and the model that they train one after the other.

    Attributes:
        start: the parameters before the first round, by name.
    """

    def __init__(self, work: Work) -> None:
        engine = {"engine": work.engine}
        if work.engine != "in_process":
            engine["workers"] = work.workers
        where, size = Path(work.folder), SIZES[work.size]
        config = configure(work.clients, work.rounds, where, size, threads=work.threads, **engine)
        torch.set_num_threads(config.threads)
        self.experiment = prepare(config)
        self.model = build_model(config, config.encoder.depth)
        self.start = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        self.rounds_left = work.rounds

    def train(self, client: int) -> None:
        """One step from the values that the model has; the draws depend on the client alone."""
        own = self.experiment
        indices = own.client_indices[client]
        bare_fit(self.model, own.dataset.train_images, indices, own.views, own.config, client)

    def report(self, clients: int, state: Mapping[str, Tensor]) -> None:
        """A round of so many clients has ended: say how far the weights are from the start; wait for a turn."""
        squares = [(state[name].detach() - value).square().sum() for name, value in self.start.items()]
        print(
            MARK + json.dumps({"clients": clients, "moved": torch.stack(squares).sum().sqrt().item()}), flush=True
        )
        self.rounds_left -= 1
        if self.rounds_left:
            sys.stdin.readline()


@cache
def kept(text: str) -> Workload:
    """The workload of this process, made once."""
    return Workload(read(text))


def read(text: str) -> Work:
    """See `Work.text`."""
    return Work(**json.loads(text))


def asked() -> Work:
    """By the command line."""
    return read(sys.argv[1])
