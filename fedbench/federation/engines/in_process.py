"""The clients of a round, one after the other in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from fedbench.data.pool import beside, place
from fedbench.federation.client import Upload, Worker
from fedbench.federation.client_states import ClientStates
from fedbench.federation.experiment import Experiment
from fedbench.federation.observer import Observer
from fedbench.federation.protocol import Visit
from fedbench.federation.wire import Wire


class Engine(Protocol):
    """Trains visits; yields them in their order."""

    def train(self, visits: Iterable[Visit]) -> Iterator[tuple[Visit, Upload]]:
        """Train each client from what it is sent."""
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...


def build_worker(experiment: Experiment, folder: Path, observer: Observer | None = None) -> Worker:
    """A worker for the clients of `experiment`, which keep their own state in `folder`."""
    return Worker(
        experiment.config,
        (experiment.strategy, *experiment.mechanisms),
        experiment.views,
        place(experiment.dataset.train_images, experiment.device),
        ClientStates(folder),
        observer or Observer(),
        Wire(experiment.mechanisms, experiment.config.seed),
    )


class InProcess:
    """One client after the other, on the worker of this process."""

    def __init__(self, experiment: Experiment, worker: Worker) -> None:
        self.experiment, self.worker = experiment, worker

    def train(self, visits: Iterable[Visit]) -> Iterator[tuple[Visit, Upload]]:
        """See `Engine`."""
        for visit in visits:
            indices = beside(self.worker.images, self.experiment.client_indices[visit.client])
            yield visit, self.worker.train(visit, indices)

    def close(self) -> None:
        """Nothing is held."""
