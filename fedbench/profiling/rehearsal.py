"""A federation without tensors: every visit of every client, with its payloads declared, and nothing trained.

Participation, depth dropout and versions are the very ones of a real run; only values are missing. That a group's
values change when they are trained is taken for granted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from fedbench.config.schema import Config
from fedbench.errors import UserError
from fedbench.federation import Mechanism, ServerTraining, StagePlan
from fedbench.federation.dispatch import Dispatch
from fedbench.federation.participation import active_blocks, participation
from fedbench.federation.shipment import Shipment, Specs


@dataclass(frozen=True)
class Visit:
    """One client's round.

    Attributes:
        active: blocks that it runs.
        first: whether it is the client's first visit in this stage.
        upload: None if the client is lost before it.
    """

    stage: int
    round_index: int
    client: int
    active: tuple[int, ...]
    first: bool
    download: Shipment
    upload: Shipment | None


class RehearsedTraining:
    """Stands for the server's own training and notes how often, and for how many epochs, it would train."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def train(self, epochs: int, base_lr: float | None = None) -> None:
        """See `ServerTraining.train`."""
        self.epochs.append(epochs)

    def __getattr__(self, name: str) -> object:
        raise UserError(
            f"profile: a mechanism's server_step reads {name!r}; allowed where nothing is trained: train"
        )


def server_epochs(mechanisms: Sequence[Mechanism]) -> list[int]:
    """Epochs of every training on the server after an aggregation; none: it does not train."""
    server = RehearsedTraining()
    for mechanism in mechanisms:
        mechanism.server_step(cast(ServerTraining, server))
    return [epochs for epochs in server.epochs if epochs]


def rehearse(
    config: Config,
    mechanisms: Sequence[Mechanism],
    plans: Sequence[StagePlan],
    rounds_per_stage: Sequence[int],
    specs: Sequence[Specs],
) -> Iterator[Visit]:
    """Visits in the order of a real run."""
    federation = config.federation
    dispatch = Dispatch(federation.num_clients, federation.client_memory == "kept")
    round_index = 0
    for stage, plan in enumerate(plans, start=1):
        dispatch.start_stage(plan, specs[stage - 1])
        visited: set[int] = set()
        for _ in range(rounds_per_stage[stage - 1]):
            dispatch.start_round()
            drawn = participation(config, round_index)
            changed: set[str] = set()
            for client in drawn.drawn:
                if client in drawn.lost_before:
                    continue
                active = active_blocks(config, mechanisms, plan, round_index, client)
                download = dispatch.download(client, active).shipment
                dispatch.trained(client, active)
                upload = None if client in drawn.lost_after else dispatch.upload(active)
                if upload is not None:
                    changed |= plan.uploaded_by(active) & plan.trained_by(active)
                yield Visit(stage, round_index, client, tuple(active), client not in visited, download, upload)
                visited.add(client)
            dispatch.changed(changed & set(dispatch.groups), aggregated=True)
            if server_epochs(mechanisms):
                dispatch.changed(dispatch.groups, aggregated=False)
            round_index += 1
