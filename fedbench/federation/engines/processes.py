"""The clients of a round in worker processes of this machine."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from math import inf
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as connection_wait
from pathlib import Path
from threading import Event, Thread
from time import monotonic

from fedbench.config.schema import Config
from fedbench.federation.client import Upload
from fedbench.federation.engines.effort import PATIENCE_S, Effort, Patience
from fedbench.federation.engines.remote import (
    Failure,
    Holdings,
    Identity,
    RemoteWorker,
    Request,
    heard,
    identity,
    names,
)
from fedbench.federation.engines.schedule import Arrival, Death, scheduled
from fedbench.federation.experiment import Experiment
from fedbench.federation.protocol import Visit
from fedbench.federation.server import Server
from fedbench.numerics import settle
from fedbench.workers import end_with_parent, worker_context

LOOK_S = 0.5  # between two looks whether a worker is late


class Processes:
    """Persistent worker processes, each with a working model and the data of its own (mapped files are shared).

    A worker that dies, or is killed because it does not answer in time, is replaced, and its client trained again,
    with the same result.
    """

    def __init__(self, experiment: Experiment, server: Server, folder: Path) -> None:
        self.server = server
        config = experiment.config
        self._effort = Effort(experiment)
        self._patience = Patience(self._effort)
        self.size = num_workers(config)
        expected = identity(experiment)
        self._new = lambda: Remote(config, expected, folder)
        self._remotes = [self._new() for _ in range(self.size)]
        self._closed = Event()
        Thread(target=self._watch, daemon=True).start()

    def train(self, visits: Iterable[Visit]) -> Iterator[tuple[Visit, Upload]]:
        """See `Engine`."""
        return scheduled(visits, self, self._effort)

    def close(self) -> None:
        """End the processes."""
        self._closed.set()
        for remote in self._remotes:
            remote.close()

    def ready(self) -> Collection[int]:
        """See `Crew`."""
        return [number for number, remote in enumerate(self._remotes) if remote.is_ready]

    def begin(self, worker: int, visit: Visit) -> None:
        """See `Crew`."""
        self._remotes[worker].send(visit, self.server, self._patience.of(visit))

    def answers(self, busy: Collection[int], wait: bool = True) -> Iterator[tuple[int, Upload | Death | Arrival]]:
        """See `Crew`."""
        asked = {
            remote.connection: number
            for number, remote in enumerate(self._remotes)
            if number in busy or not remote.is_ready
        }
        answered = connection_wait(list(asked), None if wait else 0)
        for worker in sorted(asked[one] for one in answered):  # type: ignore[index]
            yield worker, self._receive(worker)

    def _watch(self) -> None:
        # A process that is stopped takes no bytes and no signal but one: killed, it leaves a broken connection,
        # whether we wait in `send` or in `receive`. One thread for all: to start one takes a client's time.
        while not self._closed.wait(LOOK_S):
            for remote in self._remotes:
                remote.end_if_late()

    def _receive(self, worker: int) -> Upload | Death | Arrival:
        remote = self._remotes[worker]
        try:
            answer = remote.receive()
        except (EOFError, OSError):  # OSError: in the middle of its answer
            remote.close()
            self._remotes[worker] = self._new()
            return Death(remote.end)
        return heard(answer, remote, self._patience)


def num_workers(config: Config) -> int:
    """As configured, or as many as the cores of this machine allow."""
    return config.workers or max(1, multiprocessing.cpu_count() // config.threads)


class Remote:
    """A worker process as this one sees it: at most one visit at a time.

    Attributes:
        is_ready: whether it has arrived.
        visit: the latest.
    """

    is_ready = False
    visit: Visit

    def __init__(self, config: Config, expected: Identity, folder: Path) -> None:
        context = worker_context()
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, config, expected, folder), daemon=True)
        self.process.start()
        theirs.close()
        self._late = 0.0  # seconds after which it was killed
        self._holdings = Holdings()
        self._be_patient(PATIENCE_S)

    def send(self, visit: Visit, server: Server, patience: float) -> None:
        """Send a visit, with what the worker lacks for it; it has `patience` seconds to answer."""
        self._be_patient(patience)
        self.visit, lacking = visit, self._holdings.lacking(visit)
        if lacking.has_payload:
            visit = visit._replace(payload=b"")
        with suppress(OSError):  # a broken pipe: `receive` finds it, too
            self.connection.send(
                Request(visit, server.encode(names(lacking.groups), tier=visit.tier), lacking.payload)
            )

    def receive(self) -> Upload | Failure | Arrival:
        """The answer. EOFError, OSError: the process died."""
        answer: Upload | Failure | Arrival = self.connection.recv()
        self._deadline = inf
        return answer

    @property
    def end(self) -> str:
        """How the process ended."""
        if self._late:
            return f"was killed after {self._late:g} s without an answer (federation.timeout sets how long it has)"
        return f"with exit code {self.process.exitcode} (-9 is a kill, as when memory runs out)"

    def close(self) -> None:
        """End the process; what clients keep is written in one step, so that it may be at anything."""
        self._deadline = inf
        self.connection.close()
        self.process.kill()
        self.process.join()

    def _be_patient(self, seconds: float) -> None:
        self._patience, self._deadline = seconds, monotonic() + seconds

    def end_if_late(self) -> None:
        """Kill the process if its time is over."""
        if monotonic() > self._deadline:
            self._late, self._deadline = self._patience, inf
            self.process.kill()


def serve(connection: Connection, config: Config, expected: Identity, folder: Path) -> None:
    """A worker process: train what comes until the connection ends.

    `expected`: what the process that started this one has.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to a whole group of processes: the parent ends us
    end_with_parent()
    settle(config)
    worker = RemoteWorker(config, expected, folder)
    with suppress(EOFError, OSError):  # the parent is gone
        connection.send(worker.arrive())
        while True:
            connection.send(worker.answer(connection.recv()))
