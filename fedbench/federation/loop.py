"""The loop over stages, rounds and clients ([LW] Algorithm 1). It knows neither files nor W&B."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from time import perf_counter

import torch
from safetensors import SafetensorError

from fedbench.encoders.tensor_groups import StateDict, select
from fedbench.errors import UserError
from fedbench.federation.checkpoint import Checkpoint
from fedbench.federation.client import Upload
from fedbench.federation.diagnostics import PairwiseL2, flatten, step_norm
from fedbench.federation.dispatch import Dispatch
from fedbench.federation.engine import Visit, build_engine, build_worker
from fedbench.federation.experiment import Experiment
from fedbench.federation.participation import active_blocks, participation
from fedbench.federation.payload import decode, received_bytes
from fedbench.federation.record import RoundRecord
from fedbench.federation.server import Server
from fedbench.federation.server_training import ServerTraining
from fedbench.federation.shipment import compare, describe
from fedbench.federation.strategy import ClientUpdate
from fedbench.metering.costs import StepCosts
from fedbench.metering.step import StepCost, trace_step
from fedbench.ssl import SSLMethod
from fedbench.training.local import LocalTask
from fedbench.training.model import build_model

KINDS = ("state/", "held/")  # of tensors in a checkpoint


class Federation:
    """Server and worker of one run. Iterate over `rounds()`; afterwards `server.state` is the result.

    The final model is delivered to nobody, whatever the strategy: a client is sent what it needs to train. (A
    block of LW-FedSSL is handed over when the next stage begins; the last one has no next stage.)
    """

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        """`folder` is where clients keep what survives a round, if a mechanism needs that."""
        self.experiment = experiment
        self.config = experiment.config
        self.strategy, self.mechanisms = experiment.strategy, experiment.mechanisms
        federation = self.config.federation
        self.server = Server(Dispatch(federation.num_clients, federation.client_memory == "kept"))
        self.worker = build_worker(experiment, folder)
        self.engine = build_engine(experiment, self.worker, self.server, folder)
        self.server_training = ServerTraining(
            self.config, self.server, experiment.views, experiment.auxiliary, experiment.device
        )
        self.stage = 0  # the last one that has begun
        self.rounds_done = 0
        self._costs = StepCosts()

    def rounds(self) -> Iterator[RoundRecord]:
        """Train; yields a record after every round. After `resume`, the rounds that are left."""
        ends = accumulate(self.experiment.rounds_per_stage)
        for stage, (plan, end) in enumerate(zip(self.experiment.plans, ends, strict=True), start=1):
            if stage > self.stage:
                self._start_stage(stage)
            while self.rounds_done < end:
                round_index = self.rounds_done
                record = RoundRecord(round_index, stage, participation(self.config, round_index))
                with clock(record, "round"):
                    self._aggregate(record)
                    self._server_step(record, plan.depth)
                self.rounds_done += 1
                yield record

    def _start_stage(self, stage: int) -> None:
        plan = self.experiment.plans[stage - 1]
        model = build_model(self.config, plan.depth)
        initial = self.strategy.start_stage(stage, model.online_state(), self.server.state)
        self.server.start_stage(plan, describe(model), initial)
        self._start_training(stage, model)

    def _start_training(self, stage: int, model: SSLMethod) -> None:
        """Working models of the worker and, where it trains, of the server."""
        plan, self.stage = self.experiment.plans[stage - 1], stage
        self.worker.start_stage(model, plan, stage)
        if len(self.experiment.auxiliary):
            self.server_training.start_stage(build_model(self.config, plan.depth), plan)

    def close(self) -> None:
        """End what the engine started."""
        self.engine.close()

    def checkpoint(self, cell_hash: str, **facts: object) -> Checkpoint:
        """All that the rest of the run depends on; `facts` are the caller's own."""
        versions = self.server.dispatch.versions
        held = {f"held/{group}": torch.from_numpy(numbers) for group, numbers in versions.held().items()}
        values = {f"state/{key}": value.contiguous() for key, value in self.server.state.items()}
        own = {"stage": self.stage, "rounds_done": self.rounds_done, "versions": versions.facts()}
        return Checkpoint(cell_hash, {**own, **facts}, {**values, **held})

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on after the round of `checkpoint`."""
        tensors, facts = checkpoint.tensors, checkpoint.facts
        values, held = (
            {key[len(kind) :]: v for key, v in tensors.items() if key.startswith(kind)} for kind in KINDS
        )
        stage, self.rounds_done = facts["stage"], facts["rounds_done"]
        plan, dispatch = self.experiment.plans[stage - 1], self.server.dispatch
        model = build_model(self.config, plan.depth)
        dispatch.resume_stage(plan, describe(model))
        dispatch.versions.restore(facts["versions"], {key: v.numpy() for key, v in held.items()})
        self.server.state = values
        self._start_training(stage, model)
        known = (group for group in dispatch.groups if dispatch.versions.held_by_anyone(group))
        self.worker.resume(
            {group: (dispatch.versions.current[group], select(self.server.state, {group})) for group in known}
        )

    def _aggregate(self, record: RoundRecord) -> None:
        """M <- aggregate of the clients' updates, which arrive while they are consumed."""
        self.server.dispatch.start_round()
        before = dict(self.server.state)
        distances = PairwiseL2()

        def arriving() -> Iterator[ClientUpdate]:
            for visit, upload in self.engine.train(self._departing(record)):
                update = self._arrive(visit, upload, record)
                if update is not None:
                    distances.add(update.state)
                    yield update

        stream = arriving()
        values = self.strategy.aggregate(stream)
        if next(stream, None) is not None:
            raise UserError(
                f"strategy={self.config.strategy['name']}: aggregate left updates of round {record.round_index} "
                "unread; allowed: to consume them all, because the clients train while they are read"
            )
        self.server.apply(values, aggregated=True)
        record.pairwise_l2 = distances.mean()
        record.server_step_norm = step_norm(before, values) if values else 0.0

    def _departing(self, record: RoundRecord) -> Iterator[Visit]:
        """Payload down: what each client that trains is sent."""
        for client in record.participation.drawn:
            if client not in record.participation.lost_before:
                active = active_blocks(self.config, self.mechanisms, self.worker.plan, record.round_index, client)
                with clock(record, "communication"):
                    download = self.server.download(client, active)
                yield Visit(client, record.round_index, record.stage, download, active)

    def _arrive(self, visit: Visit, upload: Upload, record: RoundRecord) -> ClientUpdate | None:
        """Payload up, after local training; None if the client is lost or its update is not usable."""
        client, download, dispatch = visit.client, visit.download, self.server.dispatch
        where = f"round {record.round_index}, client {client}"
        compare(f"{where}, download", download.shipment, len(download.data), upload.received_bytes)
        dispatch.trained(client, visit.active)
        record.add(client, download.shipment, upload, self._client_cost(visit, upload))
        if client in record.participation.lost_after:
            return None
        declared = dispatch.upload(visit.active)
        record.add_upload(client, declared)
        with clock(record, "communication"):
            state = self._accept(client, upload.data, record)
        if state is None:
            return None
        compare(f"{where}, upload", declared, len(upload.data), received_bytes(upload.data, state))
        return ClientUpdate(client, upload.num_samples, state)

    def _accept(self, client: int, data: bytes, record: RoundRecord) -> StateDict | None:
        """Decode an upload; one that does not decode, does not fit or is not finite is rejected, and named."""
        try:
            state = decode(data)
        except SafetensorError as error:
            record.rejected[client] = f"does not decode: {error}"
            return None
        reason = self._fault(state)
        if reason:
            record.rejected[client] = reason
            return None
        return state

    def _fault(self, state: StateDict) -> str | None:
        for key, value in state.items():
            if key not in self.server.state or self.server.state[key].shape != value.shape:
                return f"{key} is not a tensor of the model"
        if flatten(state).sum().isfinite():  # then all are: one by one takes longer than to decode them
            return None
        return next((f"{key} is not finite" for key, value in state.items() if not value.isfinite().all()), None)

    def _server_step(self, record: RoundRecord, depth: int) -> None:
        """What mechanisms do on the server after averaging."""
        self.server_training.start_round(record.round_index)
        with clock(record, "server"):
            for mechanism in self.mechanisms:
                mechanism.server_step(self.server_training)
        record.server_steps = self.server_training.num_steps
        if record.server_steps:
            task, num_samples = self.server_training.task, len(self.server_training.auxiliary)
            cost = self._cost(task, num_samples, range(depth), (True,) * depth, ())
            record.server_flops = cost.flops * record.server_steps
            record.server_peak_memory_bytes = cost.peak_memory_bytes

    def _client_cost(self, visit: Visit, upload: Upload) -> StepCost:
        """Of a step like those that the client took, wherever that was."""
        passes = self.worker.plan.passes(visit.active)
        return self._cost(self.worker.task, upload.num_samples, visit.active, passes, upload.teachers)

    def _cost(
        self,
        task: LocalTask | None,
        num_samples: int,
        active: Sequence[int],
        passes: Sequence[bool],
        teachers: Sequence[str],
    ) -> StepCost:
        assert task is not None
        batch_size, encoder = min(self.config.optimizer.batch_size, num_samples), self.config.encoder
        shape = (encoder.in_channels, encoder.image_size, encoder.image_size)
        trace = partial(trace_step, task, batch_size, shape, self.config.precision, active, teachers)
        model = (self.stage, task is self.worker.task)
        return self._costs.of(model, batch_size, passes, teachers, trace)


@contextmanager
def clock(record: RoundRecord, part: str) -> Iterator[None]:
    """Add the wall time of the block to `record.seconds[part]`."""
    start = perf_counter()
    yield
    record.seconds[part] = record.seconds.get(part, 0.0) + perf_counter() - start
