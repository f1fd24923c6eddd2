"""The clients of a round in worker processes of this machine."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Timer

from fedbench.config.schema import Config
from fedbench.errors import UserError
from fedbench.federation.client import Upload
from fedbench.federation.engines.patience import Patience
from fedbench.federation.engines.remote import Failure, RemoteWorker, Request
from fedbench.federation.experiment import Experiment
from fedbench.federation.protocol import Visit
from fedbench.federation.server import Server
from fedbench.numerics import settle
from fedbench.workers import end_with_parent, worker_context

DEATHS = 3  # of workers over one client: then it is the client's doing
AHEAD = 2  # visits for each worker that may be finished and wait for their turn


class Processes:
    """Persistent worker processes, each with a working model and the data of its own (mapped files are shared).

    A worker that dies, or is killed because it does not answer in time, is replaced, and its client trained again,
    with the same result.
    """

    def __init__(self, experiment: Experiment, server: Server, folder: Path) -> None:
        self.server = server
        config = experiment.config
        self._patience = Patience(experiment)
        count = config.workers or max(1, multiprocessing.cpu_count() // config.threads)
        self._new = lambda: Remote(config, experiment.sources, folder)
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
                    remote.deaths = 0
                    self._send(number)
            if not busy:
                return
            for number in self._ready(busy):
                upload = self._receive(number)
                if upload is not None:
                    remote = self._remotes[number]
                    self._patience.saw(remote.visit, upload.seconds)
                    done[busy.pop(number)] = (remote.visit, replace(upload, deaths=remote.deaths))
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
        remote = self._remotes[number]
        try:
            remote.send(self.server, self._patience.of(remote.visit))
        except OSError:  # a broken pipe
            self._replace(number)

    def _receive(self, number: int) -> Upload | None:
        """A worker's answer; None if it died, and another one has its visit."""
        try:
            answer = self._remotes[number].receive()
        except (EOFError, OSError):  # OSError: in the middle of its answer
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
                f"the last {dead.end}"
            )
        self._send(number)


class Remote:
    """A worker process as this one sees it: at most one visit at a time.

    Attributes:
        visit: the latest.
        deaths: of processes before this one, over that visit.
    """

    visit: Visit

    def __init__(self, config: Config, sources: Mapping[str, str], folder: Path) -> None:
        context = worker_context()
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, config, sources, folder), daemon=True)
        self.process.start()
        theirs.close()
        self.deaths = 0
        self._alarm: Timer | None = None
        self._late = 0.0  # seconds after which it was killed
        self._round = -1
        self._known: dict[str, int] = {}  # group -> version that the worker has
        self._payloads: set[tuple[tuple[str, int], ...]] = set()  # that it had in this round

    def send(self, server: Server, patience: float) -> None:
        """Send `visit`, with what the worker lacks for it; it has `patience` seconds to answer."""
        # A process that is stopped takes no bytes and no signal but one: killed, it leaves a broken connection,
        # whether we wait in `send` or in `receive`.
        self._alarm = Timer(patience, self._kill, [patience])
        self._alarm.daemon = True
        self._alarm.start()
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

    def receive(self) -> Upload | Failure:
        """The answer. EOFError, OSError: the process died."""
        answer: Upload | Failure = self.connection.recv()
        self._calm()
        return answer

    @property
    def end(self) -> str:
        """How the process ended."""
        if self._late:
            return f"was killed after {self._late:g} s without an answer (federation.timeout sets how long it has)"
        return f"with exit code {self.process.exitcode} (-9 is a kill, as when memory runs out)"

    def close(self) -> None:
        """End the process; what clients keep is written in one step, so that it may be at anything."""
        self._calm()
        self.connection.close()
        self.process.kill()
        self.process.join()

    def _kill(self, patience: float) -> None:
        self._late = patience
        self.process.kill()

    def _calm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()


def serve(connection: Connection, config: Config, sources: Mapping[str, str], folder: Path) -> None:
    """A worker process: train what comes until the connection ends.

    `sources`: of the plugins that the process had which started this one.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to a whole group of processes: the parent ends us
    end_with_parent()
    settle(config)
    worker: RemoteWorker | None = None
    while True:
        try:
            request = connection.recv()
            try:
                worker = worker or RemoteWorker(config, sources, folder)
                answer: Upload | Failure = worker.answer(request)
            except UserError as error:
                answer = Failure(str(error), is_users=True)
            except Exception:
                answer = Failure(traceback.format_exc(), is_users=False)
            connection.send(answer)
        except (EOFError, OSError):  # the parent is gone
            return
