"""The clients of a round in worker processes of this machine."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Timer

from fedbench.config.schema import Config
from fedbench.errors import UserError
from fedbench.federation.client import Upload
from fedbench.federation.engines.effort import Effort, Patience
from fedbench.federation.engines.remote import Failure, Holdings, RemoteWorker, Request, names
from fedbench.federation.engines.schedule import Death, scheduled
from fedbench.federation.experiment import Experiment
from fedbench.federation.protocol import Visit
from fedbench.federation.server import Server
from fedbench.numerics import settle
from fedbench.workers import end_with_parent, worker_context


class Processes:
    """Persistent worker processes, each with a working model and the data of its own (mapped files are shared).

    A worker that dies, or is killed because it does not answer in time, is replaced, and its client trained again,
    with the same result. As a `Crew`, all of them are ready at once.
    """

    def __init__(self, experiment: Experiment, server: Server, folder: Path) -> None:
        self.server = server
        config = experiment.config
        self._effort = Effort(experiment)
        self._patience = Patience(self._effort)
        self.size = config.workers or max(1, multiprocessing.cpu_count() // config.threads)
        self._new = lambda: Remote(config, experiment.sources, folder)
        self._remotes = [self._new() for _ in range(self.size)]

    def train(self, visits: Iterable[Visit]) -> Iterator[tuple[Visit, Upload]]:
        """See `Engine`."""
        return scheduled(visits, self, self._effort)

    def close(self) -> None:
        """End the processes."""
        for remote in self._remotes:
            remote.close()

    def ready(self) -> Collection[int]:
        """See `Crew`."""
        return range(self.size)

    def begin(self, worker: int, visit: Visit) -> None:
        """See `Crew`."""
        self._remotes[worker].send(visit, self.server, self._patience.of(visit))

    def answers(self, busy: Collection[int]) -> Iterator[tuple[int, Upload | Death]]:
        """See `Crew`."""
        answered = wait([self._remotes[worker].connection for worker in busy])
        for worker in [worker for worker in busy if self._remotes[worker].connection in answered]:
            yield worker, self._receive(worker)

    def _receive(self, worker: int) -> Upload | Death:
        remote = self._remotes[worker]
        try:
            answer = remote.receive()
        except (EOFError, OSError):  # OSError: in the middle of its answer
            remote.close()
            self._remotes[worker] = self._new()
            return Death(remote.end)
        if isinstance(answer, Failure):
            raise (UserError if answer.is_users else RuntimeError)(answer.text)
        self._patience.saw(remote.visit, answer.seconds)
        return answer


class Remote:
    """A worker process as this one sees it: at most one visit at a time.

    Attributes:
        visit: the latest.
    """

    visit: Visit

    def __init__(self, config: Config, sources: Mapping[str, str], folder: Path) -> None:
        context = worker_context()
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, config, sources, folder), daemon=True)
        self.process.start()
        theirs.close()
        self._alarm: Timer | None = None
        self._late = 0.0  # seconds after which it was killed
        self._holdings = Holdings()

    def send(self, visit: Visit, server: Server, patience: float) -> None:
        """Send a visit, with what the worker lacks for it; it has `patience` seconds to answer."""
        # A process that is stopped takes no bytes and no signal but one: killed, it leaves a broken connection,
        # whether we wait in `send` or in `receive`.
        self._alarm = Timer(patience, self._kill, [patience])
        self._alarm.daemon = True
        self._alarm.start()
        self.visit, lacking = visit, self._holdings.lacking(visit)
        if lacking.has_payload:
            visit = visit._replace(payload=b"")
        with suppress(OSError):  # a broken pipe: `receive` finds it, too
            self.connection.send(Request(visit, server.encode(names(lacking.groups)), lacking.payload))

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
