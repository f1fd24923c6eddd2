"""A tiny federation that keeps what every client received, trained from, ended with and sent back."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fedbench.federation.client import LocalBatches, Upload, Worker
from fedbench.federation.experiment import Experiment
from fedbench.federation.loop import Federation
from fedbench.federation.payload import StateDict, decode
from fedbench.federation.plan import StagePlan
from fedbench.federation.record import RoundRecord
from fedbench.federation.server import Download
from fedbench.federation.strategy import ClientUpdate


@dataclass(frozen=True)
class Visit:
    """One client's round, as seen on the client.

    Attributes:
        server: the server's tensors when the payload left it.
        payload: what the payload decodes to.
        download_bytes, upload_bytes: lengths of the two payloads.
        before: the client's online branch when it starts to train.
        after: the same when it has trained.
        upload: what it sent back, decoded.
    """

    round_index: int
    stage: int
    client: int
    plan: StagePlan
    server: StateDict
    payload: StateDict
    download_bytes: int
    before: StateDict
    after: StateDict
    upload: StateDict
    upload_bytes: int


class _WitnessedWorker(Worker):
    before: StateDict
    after: StateDict

    def train(self, client: int, indices: Tensor, round_index: int, download: Download) -> Upload:
        upload = super().train(client, indices, round_index, download)
        self.download, self.upload = download, upload
        return upload

    def _receive(self, download: Download) -> StateDict:
        received = super()._receive(download)
        self.before = self._snapshot()
        return received

    def _send(self, batches: LocalBatches) -> Upload:
        self.after = self._snapshot()
        return super()._send(batches)

    def _snapshot(self) -> StateDict:
        assert self.task is not None
        return copy_of(self.task.method.online_state())


class Witness(Federation):
    """Runs an experiment to its end; `visits` in the order in which they happened, `records` by round."""

    def __init__(self, experiment: Experiment, reverse: bool = False) -> None:
        super().__init__(experiment)
        self.worker: _WitnessedWorker = _WitnessedWorker(
            experiment.config, experiment.strategy, experiment.views, self.worker.images
        )
        self.visits: list[Visit] = []
        self.reverse = reverse
        self.records = list(self.rounds())

    def _participants(self, round_index: int) -> Sequence[int]:
        drawn = super()._participants(round_index)
        return list(reversed(drawn)) if self.reverse else drawn

    def _visit(self, client: int, record: RoundRecord) -> ClientUpdate:
        server = copy_of(self.server.state)
        update = super()._visit(client, record)
        worker = self.worker
        self.visits.append(
            Visit(
                record.round_index,
                record.stage,
                client,
                worker.plan,
                server,
                decode(worker.download.data),
                len(worker.download.data),
                worker.before,
                worker.after,
                decode(worker.upload.data),
                len(worker.upload.data),
            )
        )
        return update


def copy_of(state: StateDict) -> StateDict:
    """Values that no later step can change."""
    return {key: value.detach().cpu().clone() for key, value in state.items()}
