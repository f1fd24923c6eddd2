"""A tiny federation of which is kept what every client received, trained from, ended with and sent back."""

import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from fedbench.config.schema import Config
from fedbench.encoders.tensor_groups import StateDict, is_message
from fedbench.federation.client import Upload
from fedbench.federation.costs import RunCosts
from fedbench.federation.experiment import Experiment
from fedbench.federation.federation import Federation
from fedbench.federation.observer import Observer
from fedbench.federation.participation import Choose, Participation, participation
from fedbench.federation.payload import decode
from fedbench.federation.plan import StagePlan
from fedbench.federation.protocol import Visit
from fedbench.federation.record import RoundRecord
from fedbench.federation.server import RejectedError
from fedbench.federation.strategy import ClientUpdate
from fedbench.ssl import SSLMethod


@dataclass(frozen=True)
class Observation:
    """One client's round, as seen on the client.

    Attributes:
        server: the server's tensors when the payload left it; sent: what clients are sent of them, which differs
            where a codec loses something.
        plan: of the visit.
        needed: groups that the client needs in this round.
        bases: of the groups that came packed, the version of which they are a change.
        payload: what the payload decodes to; reply: what the one that it sent back does, or would have.
        download_bytes, upload_bytes: lengths of the two payloads.
        before: the client's online branch when it starts to train.
        after: the same when it has trained.
        upload: what the server makes of the reply.
        returned: whether the server used it.
        holds: where the client has entries of its own (`ClientUpdate.holds`).
        codec_state: what both ends of the wire remembered of the client when the payload left the server.
    """

    round_index: int
    stage: int
    client: int
    plan: StagePlan
    server: StateDict
    sent: StateDict
    needed: frozenset[str]
    bases: Mapping[str, int]
    payload: StateDict
    reply: StateDict
    download_bytes: int
    before: StateDict
    after: StateDict
    upload: StateDict
    upload_bytes: int
    returned: bool
    holds: StateDict
    codec_state: StateDict


class Keepsakes:
    """Copies that no later step can change. Equal values of a tensor are kept once: most are only sent on."""

    def __init__(self) -> None:
        self._values: defaultdict[str, list[Tensor]] = defaultdict(list)  # by key, the latest last

    def copy(self, state: Mapping[str, Tensor]) -> StateDict:
        """The values of `state`."""
        return {key: self._kept(key, value) for key, value in state.items()}

    def _kept(self, key: str, value: Tensor) -> Tensor:
        value = value.detach().cpu()
        for kept in reversed(self._values[key]):
            if kept.shape == value.shape and kept.dtype == value.dtype and torch.equal(kept, value):
                return kept
        self._values[key].append(value.clone())
        return self._values[key][-1]


class Witness(Observer):
    """Runs an experiment, in a temporary folder, and keeps what it sees.

    `visits` in the order in which they happened; `records`, and the server's model after every aggregation
    (`aggregated`) and after every round (`final`), by round.
    """

    def __init__(
        self,
        experiment: Experiment,
        reverse: bool = False,
        rounds: int | None = None,
        costs: RunCosts | None = None,
    ) -> None:
        """`reverse`: the clients of a round train in the opposite order; `rounds`: the first ones, None: all.

        `costs`: of another run's steps, to which these are alike.
        """
        self.experiment = experiment
        self.visits: list[Observation] = []
        self.aggregated: list[StateDict] = []
        self.final: list[StateDict] = []
        self._keepsakes = Keepsakes()
        with tempfile.TemporaryDirectory() as folder:
            draw = backwards if reverse else participation
            self.federation = Federation(experiment, Path(folder), self, draw)
            self.federation.costs = costs or self.federation.costs
            self.records = list(islice(self.federation.rounds(), rounds))

    def visit_started(self, visit: Visit, model: SSLMethod) -> None:
        """Keep what the client begins with."""
        self._before = self._keepsakes.copy(model.online_state())
        self._codec_state = dict(self.federation.course.wire.states.get(visit.client, {}))

    def visit_ended(self, visit: Visit, model: SSLMethod) -> None:
        """Keep what it ends with."""
        self._after = self._keepsakes.copy(model.online_state())

    def update_arrived(
        self, visit: Visit, upload: Upload, update: ClientUpdate | None, server: Mapping[str, Tensor]
    ) -> None:
        """Keep the visit."""
        reply = decode(upload.data)
        state = self._made_of(visit, upload) if update is None else update.state
        self.visits.append(
            Observation(
                visit.round_index,
                visit.stage,
                visit.client,
                visit.plan,
                self._keepsakes.copy(server),
                self._keepsakes.copy(self._sent(visit)),
                frozenset(visit.versions),
                visit.bases,
                self._keepsakes.copy(decode(visit.payload)),
                self._keepsakes.copy(reply),
                len(visit.payload),
                self._before,
                self._after,
                self._keepsakes.copy(state),
                len(upload.data),
                update is not None,
                {} if update is None else self._keepsakes.copy(update.holds),
                self._codec_state,
            )
        )

    def _made_of(self, visit: Visit, upload: Upload) -> StateDict:
        try:
            return self.federation.server.accept(upload.data, visit.client).state
        except RejectedError:
            return decode(upload.data)

    def _sent(self, visit: Visit) -> StateDict:
        groups = (group for group in visit.versions if not is_message(group))
        sent = [self.federation.server.sent(group, visit.tier) for group in groups]
        return {key: value for values in sent for key, value in values.items()}

    def round_aggregated(self, server: Mapping[str, Tensor]) -> None:
        """Keep the model after the aggregation."""
        self.aggregated.append(self._keepsakes.copy(server))

    def round_ended(self, record: RoundRecord, server: Mapping[str, Tensor]) -> None:
        """Keep the model after the round."""
        self.final.append(self._keepsakes.copy(server))


def backwards(config: Config, round_index: int, choose: Choose) -> Participation:
    """A round's clients, the last one first."""
    drawn = participation(config, round_index, choose)
    return replace(drawn, drawn=drawn.drawn[::-1])
