"""The loop over stages, rounds and clients ([LW] Algorithm 1). It knows neither files nor W&B."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

import torch

from fedbench.federation.client import Worker
from fedbench.federation.experiment import Experiment
from fedbench.federation.model import build_model
from fedbench.federation.payload import decode
from fedbench.federation.record import RoundRecord
from fedbench.federation.server import Server
from fedbench.federation.strategy import ClientUpdate
from fedbench.metering import StepCost, trace_step
from fedbench.random import generator


class Federation:
    """Server and worker of one run. Iterate over `rounds()`; afterwards `server.state` is the result."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.config = experiment.config
        self.server = Server(self.config.federation.num_clients)
        images = experiment.dataset.train_images.to(experiment.device)
        self.worker = Worker(self.config, experiment.strategy, experiment.views, images)
        self._costs: dict[tuple[int, int], StepCost] = {}

    def rounds(self) -> Iterator[RoundRecord]:
        """Train; yields a record after every round."""
        round_index = 0
        for stage, plan in enumerate(self.experiment.plans, start=1):
            model = build_model(self.config, plan.depth, stage)
            self.server.grow(model.online_state())
            self.worker.start_stage(model, plan)
            for _ in range(self.experiment.rounds_per_stage[stage - 1]):
                yield self._round(RoundRecord(round_index, stage, self._participants(round_index)))
                round_index += 1

    def _round(self, record: RoundRecord) -> RoundRecord:
        updates = (self._visit(client, record) for client in record.participants)
        with clock(record, "round"):
            self.server.apply(self.experiment.strategy.aggregate(updates))
        return record

    def _visit(self, client: int, record: RoundRecord) -> ClientUpdate:
        """Payload down, local training, payload up."""
        indices = self.experiment.client_indices[client].to(self.experiment.device)
        download = self.server.download(client)
        with clock(record, "training"):
            upload = self.worker.train(client, indices, record.round_index, download)
        self.server.overwritten(client, self.worker.plan.trained_groups)
        record.add(download, upload, self._cost(record.stage, len(indices)))
        return ClientUpdate(client, upload.num_samples, decode(upload.data))

    def _participants(self, round_index: int) -> Sequence[int]:
        """All clients, or as many as configured, drawn uniformly without replacement, in ascending order."""
        federation = self.config.federation
        if federation.participants is None:
            return range(federation.num_clients)
        draw = generator(self.config.seed, "participants", round_index)
        order = torch.randperm(federation.num_clients, generator=draw)
        return sorted(order[: federation.participants].tolist())

    def _cost(self, stage: int, num_samples: int) -> StepCost:
        """Traced once for each stage and batch size."""
        batch_size = min(self.config.optimizer.batch_size, num_samples)
        if (stage, batch_size) not in self._costs:
            assert self.worker.task is not None
            encoder = self.config.encoder
            shape = (encoder.in_channels, encoder.image_size, encoder.image_size)
            cost = trace_step(self.worker.task, batch_size, shape, self.config.precision)
            self._costs[stage, batch_size] = cost
        return self._costs[stage, batch_size]


@contextmanager
def clock(record: RoundRecord, part: str) -> Iterator[None]:
    """Add the wall time of the block to `record.seconds[part]`."""
    start = perf_counter()
    yield
    record.seconds[part] = record.seconds.get(part, 0.0) + perf_counter() - start
