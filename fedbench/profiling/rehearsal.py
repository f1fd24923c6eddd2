"""A federation without tensors: the protocol of a real run, with nothing behind it but declarations.

That a group's values change when they are trained is taken for granted.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

from fedbench.config.schema import Config
from fedbench.errors import UserError
from fedbench.federation import Mechanism, ServerTraining, StagePlan, Strategy
from fedbench.federation.participation import Participation
from fedbench.federation.protocol import Course, Visit
from fedbench.federation.shipment import Specs


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


class Rehearsal:
    """What is behind the protocol where nothing is trained (`federation.protocol.Executor`)."""

    def __init__(self, mechanisms: Sequence[Mechanism], course: Course, specs: Sequence[Specs]) -> None:
        self.mechanisms, self.course, self.specs = mechanisms, course, specs
        self.visits: list[Visit] = []  # of the round under way

    def start_stage(self, stage: int) -> None:
        """See `Executor`."""
        self.course.dispatch.start_stage(self.course.plan, self.specs[stage - 1], self.course.anew)

    def start_round(self, round_index: int, stage: int, drawn: Participation) -> None:
        """See `Executor`."""
        self.visits = []

    def train(self, visits: Iterable[Visit]) -> Iterator[tuple[Visit, None]]:
        """See `Executor`."""
        for visit in visits:
            yield visit, None

    def trained(self, visit: Visit, result: None) -> None:
        """See `Executor`."""
        self.visits.append(visit)

    def aggregate(self, returning: Iterator[tuple[Visit, None]]) -> None:
        """See `Executor`."""
        dispatch, changed = self.course.dispatch, set[str]()
        for visit, _ in returning:
            changed |= visit.plan.uploaded_groups & visit.plan.trained_groups
        dispatch.changed(changed & set(dispatch.groups), aggregated=True)

    def server_step(self) -> None:
        """See `Executor`."""
        dispatch = self.course.dispatch
        if server_epochs(self.mechanisms):
            dispatch.changed(dispatch.groups, aggregated=False)

    def ends_stage(self) -> bool:
        """See `Executor`. A criterion reads values, and there are none: stages have their fixed rounds."""
        return False


def rehearse(
    config: Config,
    strategy: Strategy,
    mechanisms: Sequence[Mechanism],
    plans: Sequence[StagePlan],
    rounds_per_stage: Sequence[int],
    specs: Sequence[Specs],
) -> Iterator[Visit]:
    """Visits in the order of a real run."""
    course = Course(config, strategy, mechanisms, plans, rounds_per_stage)
    rehearsal = Rehearsal(mechanisms, course, specs)
    for _ in course.rounds(rehearsal):
        yield from rehearsal.visits
