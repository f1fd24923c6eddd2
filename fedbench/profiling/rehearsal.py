"""A federation without tensors: the protocol of a real run, with nothing behind it but declarations.

That a group's values change when they are trained is taken for granted.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from fedbench.config.schema import Config
from fedbench.encoders.tensor_groups import Specs, is_message
from fedbench.federation import Mechanism, ServerTraining, StagePlan, Strategy
from fedbench.federation.participation import Participation
from fedbench.federation.protocol import Course, Visit
from fedbench.federation.server_rehearsal import ServerWork, rehearsed
from fedbench.federation.server_training import works_on_server


class RehearsedRound(NamedTuple):
    """Visits of a round in their order, and what the server does behind them; `codec_flops`: its own."""

    stage: int
    visits: list[Visit]
    work: list[ServerWork]
    codec_flops: int = 0


class Rehearsal:
    """What is behind the protocol where nothing is trained (`federation.protocol.Executor`)."""

    round: RehearsedRound  # under way

    def __init__(self, mechanisms: Sequence[Mechanism], course: Course, specs: Sequence[Specs]) -> None:
        self.course, self.specs = course, specs
        self.mechanisms = [mechanism for mechanism in mechanisms if works_on_server(mechanism)]

    def start_stage(self, stage: int) -> None:
        """See `Executor`."""
        specs = self.course.specs(self.specs[stage - 1])
        self.course.dispatch.start_stage(self.course.plan, specs, self.course.anew)

    def start_round(self, round_index: int, stage: int, drawn: Participation) -> None:
        """See `Executor`."""
        self.round = RehearsedRound(stage, [], [])

    def train(self, visits: Iterable[Visit]) -> Iterator[tuple[Visit, None]]:
        """See `Executor`."""
        for visit in visits:
            yield visit, None

    def trained(self, visit: Visit, result: None) -> None:
        """See `Executor`."""
        self.round.visits.append(visit)

    def aggregate(self, returning: Iterator[tuple[Visit, None]]) -> None:
        """See `Executor`."""
        dispatch, changed, messages = self.course.dispatch, set[str](), set[str]()
        for visit, _ in returning:
            assert visit.upload is not None
            changed |= visit.plan.uploaded_groups & visit.plan.trained_groups
            messages |= {entry.group for entry in visit.upload.entries if is_message(entry.group)}
        dispatch.changed(changed & set(dispatch.groups), aggregated=True)
        dispatch.changed(messages, aggregated=False)

    def server_step(self) -> None:
        """See `Executor`."""
        for mechanism in self.mechanisms:
            mechanism.server_step(self._server(mechanism))
        self._changed(self.round.work)

    def end_stage(self) -> None:
        """See `Executor`."""
        done = len(self.round.work)
        for mechanism in self.mechanisms:
            mechanism.end_stage(self._server(mechanism))
        self._changed(self.round.work[done:])

    def end_round(self) -> None:
        """See `Executor`."""
        self.round = self.round._replace(codec_flops=self.course.dispatch.codec_flops)

    def _server(self, mechanism: Mechanism) -> ServerTraining:
        return rehearsed(mechanism, self.course.plan, self.course.finished, self.round.work)

    def _changed(self, work: Iterable[ServerWork]) -> None:
        dispatch = self.course.dispatch
        for one in work:
            dispatch.changed(dispatch.groups if one.epochs else one.groups, aggregated=False)

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
) -> Iterator[RehearsedRound]:
    """Rounds in the order of a real run."""
    course = Course(config, strategy, mechanisms, plans, rounds_per_stage)
    rehearsal = Rehearsal(mechanisms, course, specs)
    for _ in course.rounds(rehearsal):
        yield rehearsal.round
