"""A federation that trains: what is behind the protocol in a real run. It knows neither files nor W&B."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from fedbench.encoders.tensor_groups import StateDict, on_wire
from fedbench.errors import UserError
from fedbench.federation.aggregation import Aggregation, ServerState
from fedbench.federation.checkpoint import Checkpoint
from fedbench.federation.client import Upload
from fedbench.federation.costs import RunCosts
from fedbench.federation.diagnostics import PairwiseL2, step_norm
from fedbench.federation.engines import build_engine, build_worker
from fedbench.federation.experiment import Experiment
from fedbench.federation.mechanism import Mechanism, figures
from fedbench.federation.messages import Arrived
from fedbench.federation.observer import Observer
from fedbench.federation.participation import Participation, participation
from fedbench.federation.protocol import Course, Draw, Visit
from fedbench.federation.record import RoundRecord
from fedbench.federation.server import RejectedError, Server
from fedbench.federation.server_training import ServerTraining, works_on_server
from fedbench.federation.shipment import compare, describe
from fedbench.federation.strategy import ClientUpdate
from fedbench.ssl import SSLMethod
from fedbench.training.model import build_model


class Federation:
    """Server and worker of one run. Iterate over `rounds()`; afterwards `server.state` is the result.

    The final model is delivered to nobody, whatever the strategy: a client is sent what it needs to train. (A
    block of LW-FedSSL is handed over when the next stage begins; the last one has no next stage.)
    """

    record: RoundRecord  # of the round under way

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        observer: Observer | None = None,
        draw: Draw = participation,
    ) -> None:
        """`folder` is where clients keep what survives a round, if a mechanism needs that."""
        self.experiment, self.config = experiment, experiment.config
        self.strategy, self.mechanisms = experiment.strategy, experiment.mechanisms
        self.observer = observer or Observer()
        self.course = Course(
            self.config, self.strategy, self.mechanisms, experiment.plans, experiment.rounds_per_stage, draw
        )
        self.server = Server(self.course.dispatch)
        self.worker = build_worker(experiment, folder, self.observer)
        self.engine = build_engine(experiment, self.worker, self.server, folder)
        self.server_trainings = self._server_trainings()
        self.aggregation = Aggregation(self.strategy, self.mechanisms, self.server.memory)
        self.costs = RunCosts(self.config)

    def _server_trainings(self) -> dict[str, ServerTraining]:
        """By mechanism, of those that work on the server."""
        images, none = self.experiment.auxiliary, self.experiment.dataset.train_images[:0]
        names = [type(one).__name__ for one in self.mechanisms if works_on_server(one)]
        place = (self.experiment.views, self.experiment.device)
        return {
            name: ServerTraining(self.config, self.server, images.get(name, none), *place, number)
            for number, name in enumerate(names)
        }

    def rounds(self) -> Iterator[RoundRecord]:
        """Train; yields a record after every round. After `resume`, the rounds that are left."""
        for _ in self.course.rounds(self):
            yield self.record

    def close(self) -> None:
        """End what the engine started."""
        self.engine.close()

    def start_stage(self, stage: int) -> None:
        """See `Executor`."""
        plan = self.course.plan
        model = build_model(self.config, plan.depth)
        initial = self.strategy.start_stage(stage, model.online_state(), self.server.state)
        self.server.start_stage(plan, self.course.specs(describe(model)), initial, self.course.anew)
        self._start_training(model)

    def _start_training(self, model: SSLMethod) -> None:
        """Working models of the worker and, where it trains, of the server."""
        plan = self.course.plan
        self.worker.start_stage(model, plan)
        for training in self.server_trainings.values():
            training.start_stage(build_model(self.config, plan.depth), plan, self.course.finished)

    def start_round(self, round_index: int, stage: int, drawn: Participation) -> None:
        """See `Executor`."""
        self.record = RoundRecord(round_index, stage, drawn)
        self._round_start = perf_counter()

    def train(self, visits: Iterable[Visit]) -> Iterator[tuple[Visit, Upload]]:
        """See `Executor`."""
        return self.engine.train(map(self._with_payload, visits))

    def _with_payload(self, visit: Visit) -> Visit:
        with clock(self.record, "communication"):
            payload = self.server.encode(visit.groups, visit.bases, visit.tier)
            return visit._replace(payload=payload, agreed=dict(self.server.agreed.get(visit.client, {})))

    def trained(self, visit: Visit, upload: Upload) -> None:
        """See `Executor`."""
        where = f"round {visit.round_index}, client {visit.client}"
        compare(f"{where}, download", visit.download, len(visit.payload), upload.received_bytes)
        assert self.worker.task is not None
        cost = self.costs.of_client(self.worker.task, visit, upload)
        self.record.add(visit.client, visit.download, upload, cost, visit.codec_flops)
        if visit.upload is None:
            self.observer.update_arrived(visit, upload, None, self.server.state)

    def aggregate(self, returning: Iterator[tuple[Visit, Upload]]) -> None:
        """See `Executor`."""
        before, distances = dict(self.server.state), PairwiseL2()
        arrived = Arrived(self.course.dispatch.specs)
        self._told: dict[int, StateDict] = {}

        def updates() -> Iterator[ClientUpdate]:
            for visit, upload in returning:
                update = self._update(visit, upload)
                self.observer.update_arrived(visit, upload, update, self.server.state)
                if update is not None:
                    distances.add(update.state)
                    arrived.add(update.client, update.messages)
                    yield update

        stream = updates()
        values = self.aggregation(stream, self._server_state(before))
        if next(stream, None) is not None:
            raise UserError(
                f"strategy={self.config.strategy['name']}: aggregate left updates of round "
                f"{self.record.round_index} unread; allowed: to consume them all, because the clients train while "
                "they are read"
            )
        self.server.apply(values, aggregated=True)
        if values:
            state = self._server_state(before)
            self.server.say(self.aggregation.messages(arrived, self.server.messages, state))
        self.server.remember(self.record.round_index, self._told)
        self.record.pairwise_l2 = distances.mean()
        self.record.server_step_norm = step_norm(before, values) if values else 0.0
        self.observer.round_aggregated(self.server.state)

    def _server_state(self, values: StateDict) -> ServerState:
        """What plugins on the server are told of the round, but for their own memory."""
        record, specs = self.record, self.course.dispatch.specs
        parameters = frozenset(key for key, spec in specs.items() if not spec.is_buffer and not on_wire(key))
        drawn = len(record.participation.drawn)
        clients, where = self.config.federation.num_clients, (self.course.plan, record.stage, record.round_index)
        return ServerState(values, parameters, *where, drawn, num_clients=clients, seed=self.config.seed)

    def ends_stage(self) -> bool:
        """See `Executor`."""
        return self.aggregation.ends_stage(self._server_state(self.server.state))

    def _update(self, visit: Visit, upload: Upload) -> ClientUpdate | None:
        """What a client sent back, decoded; None if it is not usable, and then the record says why."""
        assert visit.upload is not None
        self.record.add_upload(visit.client, visit.upload)
        with clock(self.record, "communication"):
            try:
                accepted = self.server.accept(upload.data, visit.client)
            except RejectedError as reason:
                self.record.rejected[visit.client] = str(reason)
                return None
        where = f"round {visit.round_index}, client {visit.client}, upload"
        compare(where, visit.upload, len(upload.data), accepted.num_bytes)
        if accepted.told:
            self._told[visit.client] = accepted.told
        return ClientUpdate(visit.client, upload.num_samples, accepted.state, accepted.messages, accepted.holds)

    def server_step(self) -> None:
        """See `Executor`."""
        with clock(self.record, "server"):
            for mechanism, training in self._at_work():
                training.start_round(self.record.round_index, self.course.lr_scale)
                mechanism.server_step(training)

    def end_stage(self) -> None:
        """See `Executor`."""
        with clock(self.record, "server"):
            for mechanism, training in self._at_work():
                mechanism.end_stage(training)

    def _at_work(self) -> Iterator[tuple[Mechanism, ServerTraining]]:
        for mechanism in self.mechanisms:
            if (training := self.server_trainings.get(type(mechanism).__name__)) is not None:
                yield mechanism, training

    def end_round(self) -> None:
        """See `Executor`."""
        for _, training in self._at_work():
            self.record.add_server(training.num_steps, self.costs.of_server(training, self.record.stage))
        self.record.server_flops += self.course.dispatch.codec_flops
        self.record.figures = figures(self.mechanisms, self.config, self.record.round_index + 1)
        self.record.seconds["round"] = perf_counter() - self._round_start
        self.observer.round_ended(self.record, self.server.state)

    def checkpoint(self, cell_hash: str) -> Checkpoint:
        """All that the rest of the run depends on."""
        server_facts, tensors = self.server.snapshot()
        own = {"stage": self.course.stage, "rounds_done": self.course.rounds_done, "ends": self.course.ends}
        return Checkpoint(cell_hash, {**own, **server_facts}, tensors)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on after the round of `checkpoint`."""
        facts = checkpoint.facts
        self.course.stage, self.course.rounds_done = facts["stage"], facts["rounds_done"]
        self.course.ends = facts.get("ends", self.course.ends)  # an older checkpoint: as planned
        plan, dispatch = self.course.plan, self.course.dispatch
        model = build_model(self.config, plan.depth)
        dispatch.resume_stage(plan, self.course.specs(describe(model)))
        self.server.restore(facts, checkpoint.tensors)
        self._start_training(model)
        self.worker.resume(self.server.known())


@contextmanager
def clock(record: RoundRecord, part: str) -> Iterator[None]:
    """Add the wall time of the block to `record.seconds[part]`."""
    start = perf_counter()
    yield
    record.seconds[part] = record.seconds.get(part, 0.0) + perf_counter() - start
