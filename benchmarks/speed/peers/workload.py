"""What all contestants have in common: clients, model, local training, and how a round is reported.

Clients, images and model are those of `small_clients.py`; local training is `bare_fit`. A contestant is started as
`FILE FOLDER ROUNDS PROCESSES`, with `FOLDER` for the images, and shares the cores among its processes.
"""

import argparse
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from bare import bare_fit
from small_clients import configure
from torch import Tensor

from fedbench.federation.experiment import prepare
from fedbench.training.model import build_model

CLIENTS = 100
CORES = 2
MARK = "ROUND "  # what a line of a report begins with


class Workload:
    """The clients' data, and the model that they train one after the other.

    Attributes:
        start: the parameters before the first round, by name.
    """

    def __init__(self, folder: Path, rounds: int, processes: int) -> None:
        engine = {"engine": "processes", "workers": processes} if processes > 1 else {}
        config = configure(CLIENTS, rounds, folder, threads=CORES // processes, **engine)
        torch.set_num_threads(config.threads)
        self.experiment = prepare(config)
        self.model = build_model(config, config.encoder.depth)
        self.start = {name: value.detach().clone() for name, value in self.model.named_parameters()}

    def train(self, client: int) -> None:
        """One step from the values that the model has; the draws depend on the client alone."""
        own = self.experiment
        indices = own.client_indices[client]
        bare_fit(self.model, own.dataset.train_images, indices, own.views, own.config, client)

    def report(self, clients: int, state: Mapping[str, Tensor]) -> None:
        """Say that a round of so many clients has ended, and how far the weights now are from the start."""
        squares = [(state[name].detach() - value).square().sum() for name, value in self.start.items()]
        print(
            MARK + json.dumps({"clients": clients, "moved": torch.stack(squares).sum().sqrt().item()}), flush=True
        )


@cache
def kept(folder: str, rounds: int, processes: int) -> Workload:
    """The workload of this process, made once."""
    return Workload(Path(folder), rounds, processes)


def asked() -> tuple[Path, int, int]:
    """Folder, rounds and processes of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("rounds", type=int)
    parser.add_argument("processes", type=int)
    given = parser.parse_args()
    return given.folder, given.rounds, given.processes
