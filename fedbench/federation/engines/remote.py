"""A worker outside this process: what it is asked, and how it answers."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from fedbench.config.schema import Config
from fedbench.encoders.tensor_groups import by_group, group_of_variant, variant
from fedbench.errors import UserError, is_out_of_memory, memory_words
from fedbench.federation.client import Upload
from fedbench.federation.engines.effort import Patience
from fedbench.federation.engines.in_process import InProcess, build_worker
from fedbench.federation.engines.schedule import Arrival
from fedbench.federation.experiment import Experiment, prepare
from fedbench.federation.payload import decode
from fedbench.federation.protocol import Visit
from fedbench.federation.versions import NOTHING
from fedbench.remembered import code_digest
from fedbench.training.model import build_model

Groups = tuple[tuple[str, int], ...]  # variants of groups with their versions
Payload = tuple[tuple[str, int, bool], ...]  # the same, and whether they travel packed


def names(groups: Groups) -> list[str]:
    """Of the groups alone."""
    return [group_of_variant(name) for name, _ in groups]


class Lacking(NamedTuple):
    """What a worker needs for a visit and does not have.

    Attributes:
        groups: that the client holds already and this worker has not seen; no traffic.
        payload: names the bytes that the client is sent.
        has_payload: whether the worker had those in this round.
    """

    groups: Groups
    payload: Payload
    has_payload: bool


class Holdings:
    """What a worker outside this process has, so that nothing is sent to it twice."""

    def __init__(self) -> None:
        self._round = -1
        self._known: dict[str, int] = {}  # variant of a group -> version
        self._payloads: set[Payload] = set()  # of this round

    def _lacks(self, visit: Visit, group: str) -> bool:
        """Whether the worker needs a group that does not come to it, or comes as a change of what it has not."""
        known, needed = self._known.get(variant(group, visit.tier)), visit.versions[group]
        if group not in visit.groups:
            return known != needed
        base = visit.bases.get(group, NOTHING)
        return base != NOTHING and known not in (base, needed)

    def lacking(self, visit: Visit) -> Lacking:
        """What to send along with a visit; from now on the worker has it."""
        if visit.round_index != self._round:
            self._round, self._payloads = visit.round_index, set()
        versions = {group: (variant(group, visit.tier), version) for group, version in visit.versions.items()}
        lacking = (group for group in versions if self._lacks(visit, group))
        payload = tuple((*versions[group], group in visit.bases) for group in visit.groups)
        needs = Lacking(tuple(versions[group] for group in lacking), payload, payload in self._payloads)
        self._known |= dict(versions.values())
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
    payload: Payload


class Failure(NamedTuple):
    """What went wrong in a worker process, and whether it is the user's to mend."""

    text: str
    is_users: bool


class Place(Protocol):
    """A worker as the process sees it that has the server; `visit`: the latest that it was given."""

    is_ready: bool
    visit: Visit


def heard(answer: Upload | Failure | Arrival, place: Place, patience: Patience) -> Upload | Arrival:
    """What a worker answered, when that has been noted.

    Raises:
        UserError, RuntimeError: it went wrong there.
    """
    if isinstance(answer, Failure):
        raise (UserError if answer.is_users else RuntimeError)(answer.text)
    if isinstance(answer, Arrival):
        place.is_ready = True
    else:
        patience.saw(place.visit, answer.seconds)
    return answer


class Identity(NamedTuple):
    """By which a worker knows that it is of the same run: hashes of code, plugins and data."""

    code: str
    sources: Mapping[str, str]
    data: str


def identity(experiment: Experiment) -> Identity:
    """Of the run that this process makes of `experiment`."""
    return Identity(code_digest(), experiment.sources, experiment.data_hash)


Result = TypeVar("Result")


class RemoteWorker:
    """Answers outside the process that has the server; whatever goes wrong is an answer, too."""

    def __init__(self, config: Config, expected: Identity, folder: Path) -> None:
        self._words = (config, expected, folder)
        self._attendant: Attendant | None = None

    def arrive(self) -> Arrival | Failure:
        """Read code, plugins and data, and check that they are those of the run."""
        return self._told(self._arrive)

    def answer(self, request: Request) -> Upload | Failure:
        """Train one visit."""
        return self._told(lambda: self._attend(request))

    def _arrive(self) -> Arrival:
        self._attendant = Attendant(*self._words)
        return Arrival()

    def _attend(self, request: Request) -> Upload:
        assert self._attendant is not None, "it has not arrived"
        return self._attendant.train(request)

    @staticmethod
    def _told(work: Callable[[], Result]) -> Result | Failure:
        try:
            return work()
        except UserError as error:
            return Failure(str(error), is_users=True)
        except Exception as error:
            if is_out_of_memory(error):
                return Failure(memory_words(error), is_users=True)
            return Failure(traceback.format_exc(), is_users=False)


class Attendant:
    """Trains what is requested."""

    def __init__(self, config: Config, expected: Identity, folder: Path) -> None:
        """UserError: code, a plugin or the data is not what it is where the server is."""
        if code_digest() != expected.code:
            raise UserError(
                f"{os.uname().nodename} has another fedbench than the process that runs the server; allowed: the "
                "same version on every node"
            )
        experiment = prepare(config, tried=True)
        if experiment.sources != expected.sources:
            raise UserError("a plugin's files changed while the run was starting; allowed: the same command again")
        if experiment.data_hash != expected.data:
            raise UserError(
                f"data: {os.uname().nodename} reads other images than the process that runs the server; allowed: "
                "the same on every node"
            )
        self.experiment = experiment
        self.worker = build_worker(experiment, folder)
        self.engine = InProcess(experiment, self.worker)
        self._stage, self._round = 0, -1
        self._payloads: dict[Payload, bytes] = {}

    def train(self, request: Request) -> Upload:
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
        arrived, versions, tier = by_group(decode(request.groups)), request.visit.versions, request.visit.tier
        self.worker.resume({variant(group, tier): (versions[group], part) for group, part in arrived.items()})

    def _payload(self, request: Request) -> bytes:
        if request.visit.round_index != self._round:
            self._round, self._payloads = request.visit.round_index, {}
        return self._payloads.setdefault(request.payload, request.visit.payload)
