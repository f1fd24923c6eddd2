"""Who trains the clients of a round: this process, or worker processes. The results have the same bits.

Every draw is keyed by seed, round and client, values come from payloads by version, and results are handed on in
the order of the visits: nothing depends on which process trained a client, or when.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple, Protocol

from fedbench.config.schema import Config
from fedbench.data.pool import beside, place
from fedbench.encoders.tensor_groups import by_group
from fedbench.errors import UserError
from fedbench.federation.client import Upload, Worker
from fedbench.federation.client_states import ClientStates
from fedbench.federation.experiment import Experiment, prepare
from fedbench.federation.observer import Observer
from fedbench.federation.payload import decode
from fedbench.federation.protocol import Visit
from fedbench.federation.server import Server
from fedbench.numerics import settle
from fedbench.training.model import build_model
from fedbench.workers import worker_context

DEATHS = 3  # of workers over one client: then it is the client's doing
AHEAD = 2  # visits for each worker that may be finished and wait for their turn


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
    )


def build_engine(experiment: Experiment, worker: Worker, server: Server, folder: Path) -> Engine:
    """The engine that the configuration asks for."""
    if experiment.config.engine == "processes":
        return Processes(experiment, server, folder)
    return InProcess(experiment, worker)


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


class Request(NamedTuple):
    """A visit as it goes to a worker process.

    Attributes:
        groups: safetensors bytes of what the client holds already and this worker has not seen; no traffic.
        payload: names the bytes that the client is sent, for `visit.payload` is left out where this worker has had
            them in this round.
    """

    visit: Visit
    groups: bytes
    payload: tuple[tuple[str, int], ...]


class Failure(NamedTuple):
    """What went wrong in a worker process, and whether it is the user's to mend."""

    text: str
    is_users: bool


class Processes:
    """Persistent worker processes, each with a working model and the data of its own (mapped files are shared).

    A worker that dies is replaced and its client trained again, with the same result.
    """

    def __init__(self, experiment: Experiment, server: Server, folder: Path) -> None:
        self.server = server
        config = experiment.config
        count = config.workers or max(1, multiprocessing.cpu_count() // config.threads)
        self._new = lambda: Remote(config, folder)
        self._remotes = [self._new() for _ in range(count)]

    def train(self, visits: Iterable[Visit]) -> Iterator[tuple[Visit, Upload]]:
        """See `Engine`."""
        todo, done, turn = enumerate(visits), dict[int, tuple[Visit, Upload]](), 0
        busy: dict[int, int] = {}  # number of a remote -> number of its visit
        while True:
            for number, remote in enumerate(self._remotes):
                ahead = len(busy) + len(done) < AHEAD * len(self._remotes)
                if number not in busy and ahead and (task := next(todo, None)):
                    busy[number], remote.visit = task
                    self._send(number)
            if not busy:
                return
            for number in self._ready(busy):
                upload = self._receive(number)
                if upload is not None:
                    done[busy.pop(number)] = (self._remotes[number].visit, upload)
            while turn in done:
                yield done.pop(turn)
                turn += 1

    def close(self) -> None:
        """End the processes."""
        for remote in self._remotes:
            remote.close()

    def _ready(self, busy: Iterable[int]) -> list[int]:
        ready = wait([self._remotes[number].connection for number in busy])
        return [number for number in busy if self._remotes[number].connection in ready]

    def _send(self, number: int) -> None:
        try:
            self._remotes[number].send(self.server)
        except (BrokenPipeError, ConnectionResetError):
            self._replace(number)

    def _receive(self, number: int) -> Upload | None:
        """A worker's answer; None if it died, and another one has its visit."""
        try:
            answer = self._remotes[number].connection.recv()
        except (EOFError, ConnectionResetError):
            self._replace(number)
            return None
        if isinstance(answer, Failure):
            raise (UserError if answer.is_users else RuntimeError)(answer.text)
        return answer

    def _replace(self, number: int) -> None:
        dead, self._remotes[number] = self._remotes[number], self._new()
        dead.close()
        self._remotes[number].visit, self._remotes[number].deaths = dead.visit, dead.deaths + 1
        if dead.deaths + 1 == DEATHS:
            raise RuntimeError(
                f"round {dead.visit.round_index}: {DEATHS} worker processes died over client {dead.visit.client}, "
                f"the last with exit code {dead.process.exitcode} (-9 is a kill, as when memory runs out)"
            )
        self._send(number)


class Remote:
    """A worker process as this one sees it: at most one visit at a time.

    Attributes:
        visit: the latest.
        deaths: of processes before this one, over that visit.
    """

    visit: Visit

    def __init__(self, config: Config, folder: Path) -> None:
        context = worker_context()
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, config, folder), daemon=True)
        self.process.start()
        theirs.close()
        self.deaths = 0
        self._round = -1
        self._known: dict[str, int] = {}  # group -> version that the worker has
        self._payloads: set[tuple[tuple[str, int], ...]] = set()  # that it had in this round

    def send(self, server: Server) -> None:
        """Send `visit`, with what the worker lacks for it."""
        visit, versions = self.visit, self.visit.versions
        if visit.round_index != self._round:
            self._round, self._payloads = visit.round_index, set()
        sent = visit.groups
        payload = tuple((group, versions[group]) for group in sent)
        lacking = [group for group in versions if group not in sent and self._known.get(group) != versions[group]]
        if payload in self._payloads:
            visit = visit._replace(payload=b"")
        self.connection.send(Request(visit, server.encode(lacking), payload))
        self._known |= versions
        self._payloads.add(payload)

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.terminate()
        self.process.join()


def serve(connection: Connection, config: Config, folder: Path) -> None:
    """A worker process: train what comes until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    settle(config)
    worker = RemoteWorker(prepare(config, tried=True), folder)
    while True:
        try:
            connection.send(worker.answer(connection.recv()))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


class RemoteWorker:
    """Answers requests in a worker process."""

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        self.experiment = experiment
        self.worker = build_worker(experiment, folder)
        self.engine = InProcess(experiment, self.worker)
        self._stage, self._round = 0, -1
        self._payloads: dict[tuple[tuple[str, int], ...], bytes] = {}

    def answer(self, request: Request) -> Upload | Failure:
        """Train one visit."""
        try:
            self._start_stage(request.visit.stage)
            self._take(request)
            visit = request.visit._replace(payload=self._payload(request))
            ((_, upload),) = self.engine.train([visit])
        except UserError as error:
            return Failure(str(error), is_users=True)
        except Exception:
            return Failure(traceback.format_exc(), is_users=False)
        return upload

    def _start_stage(self, stage: int) -> None:
        if stage != self._stage:
            plan = self.experiment.plans[stage - 1]
            self.worker.start_stage(build_model(self.experiment.config, plan.depth), plan)
            self._stage = stage

    def _take(self, request: Request) -> None:
        arrived, versions = by_group(decode(request.groups)), request.visit.versions
        self.worker.resume({group: (versions[group], values) for group, values in arrived.items()})

    def _payload(self, request: Request) -> bytes:
        if request.visit.round_index != self._round:
            self._round, self._payloads = request.visit.round_index, {}
        return self._payloads.setdefault(request.payload, request.visit.payload)
