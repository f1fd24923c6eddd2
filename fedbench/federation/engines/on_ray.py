"""The clients of a round in actors of Ray, on this machine or on many."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

from fedbench.config.schema import Config
from fedbench.errors import UserError
from fedbench.federation.client import Upload
from fedbench.federation.engines.effort import PATIENCE_S, Effort, Patience
from fedbench.federation.engines.remote import (
    Failure,
    Groups,
    Holdings,
    Identity,
    Payload,
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
from fedbench.numerics import PORTABLE, settle
from fedbench.ray_cluster import OWN, connected


class OnRay:
    """Persistent actors, each with a working model and the data of its own node.

    A payload goes to the object store once, and from there to each node once, however many clients are sent it. An
    actor that dies, with its node or alone, is replaced and its client trained again, with the same result; while
    Ray finds no place for the new one, the others go on. As a `Crew`, those are ready that have found a place.
    """

    def __init__(self, experiment: Experiment, server: Server, folder: Path) -> None:
        """UserError: the cluster has not what the workers need."""
        self.server, self.config = server, experiment.config
        self.size = self.config.workers or 1
        self._effort = Effort(experiment)
        self._patience = Patience(self._effort)
        self._ends = ExitStack()
        address = os.environ.get("RAY_ADDRESS", OWN)
        self._ray = self._ends.enter_context(connected(address, self.size * self.config.threads))
        self._folder = _Marked(folder)
        self._shared = dict[Groups | Payload, Any]()  # groups -> reference to their bytes, in this round
        self._round = -1
        self._new = self._factory(experiment)
        self._actors = [self._new() for _ in range(self.size)]

    def _factory(self, experiment: Experiment) -> Callable[[], Actor]:
        needs = needed(self.config, experiment.device.type, self.size, self._ray.cluster_resources())
        environment = {"env_vars": PORTABLE} if self.config.numerics else {}
        options = {**needs, "max_restarts": 0, "runtime_env": environment, "scheduling_strategy": "SPREAD"}
        remote = self._ray.remote(Hosted).options(**options)
        words = (self.config, identity(experiment), self._folder.path, self._folder.marker, Path.cwd())
        return lambda: Actor(remote.remote(*words))

    def train(self, visits: Iterable[Visit]) -> Iterator[tuple[Visit, Upload]]:
        """See `Engine`."""
        return scheduled(visits, self, self._effort)

    def close(self) -> None:
        """End the actors, and Ray where this run started it."""
        for actor in self._actors:
            self._ray.kill(actor.handle)
        self._folder.close()
        self._ends.close()

    def ready(self) -> Collection[int]:
        """See `Crew`."""
        return [number for number, actor in enumerate(self._actors) if actor.is_ready]

    def begin(self, worker: int, visit: Visit) -> None:
        """See `Crew`."""
        if visit.round_index != self._round:
            self._round, self._shared = visit.round_index, {}
        actor = self._actors[worker]
        lacking = actor.holdings.lacking(visit)
        payload = None if lacking.has_payload else self._put(lacking.payload, lambda: visit.payload)
        groups = self._put(lacking.groups, lambda: self.server.encode(names(lacking.groups), tier=visit.tier))
        request = Request(visit._replace(payload=b""), b"", lacking.payload)
        actor.visit, actor.patience = visit, self._patience.of(visit)
        actor.asked(actor.handle.answer.remote(request, payload, groups))

    def _put(self, groups: Groups | Payload, content: Callable[[], bytes]) -> Any:
        """A reference to `content` in the object store, where it is put once in a round."""
        if groups not in self._shared:
            self._shared[groups] = self._ray.put(content())
        return self._shared[groups]

    def answers(self, busy: Collection[int], wait: bool = True) -> Iterator[tuple[int, Upload | Death | Arrival]]:
        """See `Crew`."""
        asked = {
            actor.answer: number
            for number, actor in enumerate(self._actors)
            if number in busy or not actor.is_ready
        }
        left = min(self._actors[number].deadline for number in asked.values()) - monotonic()
        answered, _ = self._ray.wait(list(asked), timeout=max(0.0, left)) if wait else ([], [])
        if answered or not wait:  # whoever else has answered, too
            answered, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=0)
            for number in sorted(asked[ref] for ref in answered):
                yield number, self._receive(number)
            return
        for number in asked.values():
            if self._actors[number].deadline <= monotonic() and (death := self._give_up(number)):
                yield number, death

    def _receive(self, number: int) -> Upload | Death | Arrival:
        actor = self._actors[number]
        try:
            answer: Upload | Failure | Arrival = self._ray.get(actor.answer)
        except self._ray.exceptions.RayError as error:
            return self._replace(number, f"with {type(error).__name__}: {str(error).splitlines()[0]}")
        return heard(answer, actor, self._patience)

    def _replace(self, number: int, how: str) -> Death:
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._actors[number].handle)
        self._actors[number] = self._new()
        return Death(how)

    def _give_up(self, number: int) -> Death | None:
        """An actor is late; None where it may still find its place, for others have the work."""
        actor = self._actors[number]
        if actor.is_ready:
            words = "(federation.timeout sets how long it has)"
            return self._replace(number, f"was killed after {actor.patience:g} s without an answer {words}")
        if any(other.is_ready for other in self._actors):
            actor.deadline = monotonic() + PATIENCE_S
            return None
        raise UserError(
            f"engine=ray: no worker found a place in {PATIENCE_S:g} s, each needs {self.config.threads} CPUs; the "
            f"cluster has {_words(self._ray.cluster_resources())} and free of it "
            f"{_words(self._ray.available_resources())}"
        )


def _words(resources: Mapping[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"


def needed(config: Config, device: str, workers: int, cluster: Mapping[str, float]) -> dict[str, float]:
    """What each worker takes of the cluster; several share a GPU where there are more workers than GPUs.

    UserError: all of the cluster is too little.
    """
    if workers * config.threads > cluster.get("CPU", 0):
        raise UserError(
            f"engine=ray workers={workers} threads={config.threads} needs {workers * config.threads} CPUs; the "
            f"cluster has {cluster.get('CPU', 0):g}; allowed: workers x threads within that"
        )
    if device == "cpu":
        return {"num_cpus": config.threads, "num_gpus": 0}
    gpus = cluster.get("GPU", 0)
    if not gpus:
        raise UserError(f"engine=ray accelerator={config.accelerator}: the cluster has no GPU to give")
    share = 1.0 if workers <= gpus else 1 / -(-workers // int(gpus))
    return {"num_cpus": config.threads, "num_gpus": share}


class _Marked:
    """The folder of what clients keep, with a file in it by which other nodes see whether it is theirs, too."""

    def __init__(self, folder: Path) -> None:
        self.path, self.marker = folder.absolute(), f".seen-{uuid4().hex}"
        self._made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".seen-*"):  # by a kill
            left.unlink()
        (folder / self.marker).touch()

    def close(self) -> None:
        """Leave the folder as it was found, but for what clients keep."""
        with suppress(OSError):
            (self.path / self.marker).unlink()
            if self._made:
                self.path.rmdir()  # if it is empty


class Actor:
    """An actor as this process sees it.

    Attributes:
        is_ready: whether it has arrived.
        answer: reference to what it was asked last.
        visit, patience: the latest visit, and the seconds it has for it; `deadline` by `monotonic`.
    """

    visit: Visit
    patience: float = PATIENCE_S
    is_ready = False

    def __init__(self, handle: Any) -> None:
        self.handle, self.holdings = handle, Holdings()
        self.asked(handle.arrive.remote())

    def asked(self, answer: Any) -> None:
        """Something, just now."""
        self.answer, self.deadline = answer, monotonic() + self.patience


class Hosted:
    """A worker in a process of Ray's; it may be on a node that does not see the folder of the run."""

    def __init__(self, config: Config, expected: Identity, folder: Path, marker: str, home: Path) -> None:
        with suppress(OSError):  # relative paths in a configuration begin there
            os.chdir(home)
        settle(config)
        self._is_shared = (folder / marker).exists()
        self._folder = folder if self._is_shared else Path(tempfile.mkdtemp(prefix="fedbench-"))
        self._worker = RemoteWorker(config, expected, self._folder)

    def arrive(self) -> Arrival | Failure:
        """See `RemoteWorker`."""
        return self._worker.arrive()

    def answer(self, request: Request, payload: bytes | None, groups: bytes) -> Upload | Failure:
        """Train one visit. `payload` and `groups` go into the request; they come out of the object store."""
        visit = request.visit._replace(payload=payload or b"")
        answer = self._worker.answer(Request(visit, groups, request.payload))
        if not self._is_shared and any(self._folder.iterdir()):
            return Failure(
                f"engine=ray: client {visit.client} keeps tensors between its visits, and node "
                f"{os.uname().nodename} does not see the run's folder; allowed: an --out on a file system that "
                "all nodes share",
                is_users=True,
            )
        return answer
