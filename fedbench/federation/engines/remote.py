"""A worker outside this process: what it is asked, and how it answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fedbench.config.schema import Config
from fedbench.encoders.tensor_groups import by_group
from fedbench.errors import UserError
from fedbench.federation.client import Upload
from fedbench.federation.engines.in_process import InProcess, build_worker
from fedbench.federation.experiment import prepare
from fedbench.federation.payload import decode
from fedbench.federation.protocol import Visit
from fedbench.training.model import build_model

Groups = tuple[tuple[str, int], ...]  # with their versions


def names(groups: Groups) -> list[str]:
    """Without versions."""
    return [group for group, _ in groups]


class Lacking(NamedTuple):
    """What a worker needs for a visit and does not have.

    Attributes:
        groups: that the client holds already and this worker has not seen; no traffic.
        payload: names the bytes that the client is sent.
        has_payload: whether the worker had those in this round.
    """

    groups: Groups
    payload: Groups
    has_payload: bool


class Holdings:
    """What a worker outside this process has, so that nothing is sent to it twice."""

    def __init__(self) -> None:
        self._round = -1
        self._known: dict[str, int] = {}  # group -> version
        self._payloads: set[Groups] = set()  # of this round

    def lacking(self, visit: Visit) -> Lacking:
        """What to send along with a visit; from now on the worker has it."""
        if visit.round_index != self._round:
            self._round, self._payloads = visit.round_index, set()
        versions, sent = visit.versions, visit.groups
        lacking = (group for group in versions if group not in sent and self._known.get(group) != versions[group])
        payload = tuple((group, versions[group]) for group in sent)
        needs = Lacking(tuple((group, versions[group]) for group in lacking), payload, payload in self._payloads)
        self._known |= versions
        self._payloads.add(payload)
        return needs


class Request(NamedTuple):
    """A visit as it goes to a worker.

    Attributes:
        groups: safetensors bytes of `Lacking.groups`.
        payload: names the bytes that the client is sent; `visit.payload` is left out where this worker has had
            them in this round.
    """

    visit: Visit
    groups: bytes
    payload: Groups


class Failure(NamedTuple):
    """What went wrong in a worker process, and whether it is the user's to mend."""

    text: str
    is_users: bool


class RemoteWorker:
    """Answers requests in a worker process."""

    def __init__(self, config: Config, sources: Mapping[str, str], folder: Path) -> None:
        """UserError: a plugin is not the one that it was."""
        experiment = prepare(config, tried=True)
        if experiment.sources != sources:
            raise UserError("a plugin's files changed while the run was starting; allowed: the same command again")
        self.experiment = experiment
        self.worker = build_worker(experiment, folder)
        self.engine = InProcess(experiment, self.worker)
        self._stage, self._round = 0, -1
        self._payloads: dict[Groups, bytes] = {}

    def answer(self, request: Request) -> Upload:
        """Train one visit."""
        self._start_stage(request.visit.stage)
        self._take(request)
        visit = request.visit._replace(payload=self._payload(request))
        ((_, upload),) = self.engine.train([visit])
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
