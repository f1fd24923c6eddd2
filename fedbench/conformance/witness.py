"""A tiny federation that keeps what every client received, trained from, ended with and sent back."""

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fedbench.encoders.tensor_groups import StateDict
from fedbench.federation.client import Upload, Worker
from fedbench.federation.engine import InProcess
from fedbench.federation.engine import Visit as Turn
from fedbench.federation.experiment import Experiment
from fedbench.federation.loop import Federation
from fedbench.federation.payload import decode
from fedbench.federation.plan import StagePlan
from fedbench.federation.record import RoundRecord
from fedbench.federation.server import Download
from fedbench.federation.strategy import ClientUpdate
from fedbench.training.local import LocalTask


@dataclass(frozen=True)
class Visit:
    """One client's round, as seen on the client.

    Attributes:
        server: the server's tensors when the payload left it.
        active: blocks that the client ran.
        needed: groups that the client needs in this round.
        payload: what the payload decodes to.
        download_bytes, upload_bytes: lengths of the two payloads.
        before: the client's online branch when it starts to train.
        after: the same when it has trained.
        upload: what it sent back, or would have sent, decoded.
        returned: whether the server used it.
    """

    round_index: int
    stage: int
    client: int
    plan: StagePlan
    active: tuple[int, ...]
    server: StateDict
    needed: frozenset[str]
    payload: StateDict
    download_bytes: int
    before: StateDict
    after: StateDict
    upload: StateDict
    upload_bytes: int
    returned: bool


class Keepsakes:
    """Copies that no later step can change. Equal values of a tensor are kept once: most are only sent on."""

    def __init__(self) -> None:
        self._values: defaultdict[str, list[Tensor]] = defaultdict(list)  # by key, the latest last

    def copy(self, state: StateDict) -> StateDict:
        """The values of `state`."""
        return {key: self._kept(key, value) for key, value in state.items()}

    def _kept(self, key: str, value: Tensor) -> Tensor:
        value = value.detach().cpu()
        for kept in reversed(self._values[key]):
            if kept.shape == value.shape and kept.dtype == value.dtype and torch.equal(kept, value):
                return kept
        self._values[key].append(value.clone())
        return self._values[key][-1]


class _WitnessedWorker(Worker):
    keepsakes: Keepsakes
    before: StateDict
    after: StateDict
    download: Download
    active: tuple[int, ...]
    upload: Upload

    def train(
        self, client: int, indices: Tensor, round_index: int, download: Download, active: Sequence[int]
    ) -> Upload:
        self.download, self.active = download, tuple(active)
        self.upload = super().train(client, indices, round_index, download, active)
        return self.upload

    def _receive(self, download: Download) -> LocalTask:
        task = super()._receive(download)
        self.before = self.keepsakes.copy(task.method.online_state())
        return task

    def _send(
        self,
        task: LocalTask,
        client: int,
        round_index: int,
        num_samples: int,
        num_steps: int,
        active: Sequence[int],
    ) -> Upload:
        self.after = self.keepsakes.copy(task.method.online_state())
        return super()._send(task, client, round_index, num_samples, num_steps, active)


class Witness(Federation):
    """Runs an experiment to its end, in a temporary folder.

    `visits` in the order in which they happened; `records`, and the server's model after every aggregation
    (`aggregated`) and after every round (`final`), by round.
    """

    def __init__(self, experiment: Experiment, reverse: bool = False) -> None:
        with tempfile.TemporaryDirectory() as folder:
            super().__init__(experiment, Path(folder))
            worker = self.worker
            self.worker: _WitnessedWorker = _WitnessedWorker(
                worker.config, worker.terms, worker.views, worker.images, worker.states
            )
            self.keepsakes = self.worker.keepsakes = Keepsakes()
            self.engine = InProcess(experiment, self.worker)
            self.visits: list[Visit] = []
            self.aggregated: list[StateDict] = []
            self.final: list[StateDict] = []
            self.reverse = reverse
            self.records = [self._after(record) for record in self.rounds()]

    def _after(self, record: RoundRecord) -> RoundRecord:
        self.final.append(self.keepsakes.copy(self.server.state))
        return record

    def _aggregate(self, record: RoundRecord) -> None:
        if self.reverse:
            drawn = record.participation.drawn[::-1]
            record.participation = replace(record.participation, drawn=drawn)
        super()._aggregate(record)
        self.aggregated.append(self.keepsakes.copy(self.server.state))

    def _arrive(self, visit: Turn, upload: Upload, record: RoundRecord) -> ClientUpdate | None:
        server = self.keepsakes.copy(self.server.state)
        update = super()._arrive(visit, upload, record)
        self.visits.append(self._seen(visit.client, record, server, update))
        return update

    def _seen(self, client: int, record: RoundRecord, server: StateDict, update: ClientUpdate | None) -> Visit:
        worker = self.worker
        return Visit(
            record.round_index,
            record.stage,
            client,
            worker.plan,
            worker.active,
            server,
            frozenset(worker.download.versions),
            self.keepsakes.copy(decode(worker.download.data)),
            len(worker.download.data),
            worker.before,
            worker.after,
            self.keepsakes.copy(decode(worker.upload.data)),
            len(worker.upload.data),
            update is not None,
        )
