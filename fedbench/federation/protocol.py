"""The protocol of a federation ([LW] Algorithm 1): stages, rounds, who is drawn, what goes down, what comes back.

It is written once and knows no tensor. What is behind it is its executor's business: a `Federation` trains clients
and averages their updates, a rehearsal (`fedbench.profiling.rehearsal`) only declares what would travel.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol, TypeVar

from fedbench.config.schema import Config
from fedbench.encoders.tensor_groups import Specs
from fedbench.federation.dispatch import Dispatch
from fedbench.federation.mechanism import Mechanism
from fedbench.federation.messages import message_specs
from fedbench.federation.participation import Choose, Participation, participation
from fedbench.federation.plan import StagePlan, finished_blocks
from fedbench.federation.shipment import Shipment
from fedbench.federation.strategy import Strategy
from fedbench.federation.turn import Narrowing
from fedbench.federation.wire import Wire
from fedbench.training.optimizer import lr_scale

Result = TypeVar("Result")
Draw = Callable[[Config, int, Choose], Participation]


class Visit(NamedTuple):
    """A client's turn in a round.

    Attributes:
        plan: the stage's, narrowed for this visit.
        groups: those that it is sent, because it lacks their current version.
        versions: version of every group that it needs, those that it holds already included.
        download: the payload down, as declared; `upload`: the one up, None if the client is lost before it.
        bases: of the groups that travel packed, the version of which they are a change; `NOTHING`: of none.
        tier: of the client, where codecs have tiers; the client, where payloads are its own.
        lr_scale: what the schedule makes of the learning rate in this round.
        agreed: by group, the round of the upload in which the client told its codec's state as the server has it;
            a group that is not there has the first one at both ends.
        payload: the bytes of the download; empty where nothing is trained.
    """

    client: int
    round_index: int
    stage: int
    plan: StagePlan
    groups: tuple[str, ...]
    versions: Mapping[str, int]
    download: Shipment
    upload: Shipment | None
    bases: Mapping[str, int] = {}
    tier: int = 0
    lr_scale: float = 1.0
    agreed: Mapping[str, int] = {}
    payload: bytes = b""

    @property
    def codec_flops(self) -> int:
        """Of the client, which unpacks what it is sent and packs what it sends."""
        return self.download.unpack_flops + (self.upload.pack_flops if self.upload is not None else 0)


class Executor(Protocol[Result]):
    """What is behind the protocol. `Result`: what is known of a visit when the client has trained."""

    def start_stage(self, stage: int) -> None:
        """The model of a stage (1-based) comes into being; the dispatch learns its tensors."""
        ...

    def start_round(self, round_index: int, stage: int, drawn: Participation) -> None:
        """A round begins."""
        ...

    def train(self, visits: Iterable[Visit]) -> Iterator[tuple[Visit, Result]]:
        """Train each client from what it is sent, in any order; visits are drawn and handed on in theirs."""
        ...

    def trained(self, visit: Visit, result: Result) -> None:
        """A client has trained, whether its update comes back or not: its costs are counted."""
        ...

    def aggregate(self, returning: Iterator[tuple[Visit, Result]]) -> None:
        """M <- aggregate of what comes back. Clients train while `returning` is consumed, which is to its end."""
        ...

    def server_step(self) -> None:
        """What mechanisms do on the server after the aggregation."""
        ...

    def ends_stage(self) -> bool:
        """Whether the stage is over before its last round."""
        ...

    def end_stage(self) -> None:
        """What mechanisms do on the server when a stage is over, the last one included."""
        ...

    def end_round(self) -> None:
        """The round is over, and the stage, if it was its last."""
        ...


class Course:
    """Where a run is, and how it goes on.

    Attributes:
        stage: the last one that has begun; 0 before the first.
        rounds_done: over all stages.
        ends: rounds that are done when each stage ends; one that ends early leaves its rounds to the next.
    """

    def __init__(
        self,
        config: Config,
        strategy: Strategy,
        mechanisms: Sequence[Mechanism],
        plans: Sequence[StagePlan],
        rounds_per_stage: Sequence[int],
        draw: Draw = participation,
    ) -> None:
        federation = config.federation
        self.config, self.plans, self.draw = config, plans, draw
        self.narrowing = Narrowing(strategy, mechanisms, config.seed, federation.num_clients)
        self.ends = list(accumulate(rounds_per_stage))
        self.wire = Wire(mechanisms, config.seed)
        self.dispatch = Dispatch(federation.num_clients, federation.client_memory == "kept", self.wire)
        self.stage = self.rounds_done = 0

    @property
    def plan(self) -> StagePlan:
        """Of the stage that has begun last."""
        return self.plans[self.stage - 1]

    @property
    def anew(self) -> frozenset[str]:
        """Groups whose values are discarded as this stage begins."""
        return self.narrowing.strategy.begins_anew(self.stage) if self.stage > 1 else frozenset()

    @property
    def finished(self) -> tuple[int, ...]:
        """Blocks that this stage trains and no later one does."""
        return finished_blocks(self.plans, self.stage)

    def specs(self, model: Specs) -> Specs:
        """All tensors that travel in this stage: the model's, and messages beside it."""
        said = message_specs(self.narrowing.mechanisms, model, self.plan.trained_groups, self.config)
        return {**model, **said}

    def rounds(self, executor: Executor[Result]) -> Iterator[int]:
        """The rounds that are left; yields the index of each when it is over."""
        for stage in range(1, len(self.ends) + 1):
            if stage > self.stage:
                self.stage = stage
                executor.start_stage(stage)
            while self.rounds_done < self.ends[stage - 1]:
                self._round(executor)
                if stage < len(self.ends) and executor.ends_stage():
                    self.ends[stage - 1] = self.rounds_done + 1
                if self.rounds_done + 1 == self.ends[stage - 1]:
                    executor.end_stage()
                executor.end_round()
                self.rounds_done += 1
                yield self.rounds_done - 1

    def _round(self, executor: Executor[Result]) -> None:
        self.dispatch.start_round()
        drawn = self.draw(self.config, self.rounds_done, self.narrowing.strategy.clients)
        executor.start_round(self.rounds_done, self.stage, drawn)
        executor.aggregate(self._returning(executor, drawn))
        executor.server_step()

    def _departing(self, drawn: Participation) -> Iterator[Visit]:
        """Payload down: what each client that trains is sent."""
        for client in drawn.drawn:
            if client not in drawn.lost_before:
                plan = self._visit_plan(client)
                sent = self.dispatch.download(client, plan)
                upload = None if client in drawn.lost_after else self.dispatch.upload(plan, client)
                where = (client, self.rounds_done, self.stage)
                payload = sent.groups, sent.versions, sent.shipment
                yield Visit(*where, plan, *payload, upload, sent.bases, sent.tier, self.lr_scale)

    @property
    def _in_stage(self) -> tuple[int, int]:
        """The round under way, 0-based in its stage, and R_s."""
        begin, end = [0, *self.ends][self.stage - 1 : self.stage + 1]
        return self.rounds_done - begin, end - begin

    @property
    def lr_scale(self) -> float:
        """What the schedule makes of the learning rate in the round under way."""
        return lr_scale(self.config.optimizer, self.rounds_done, self.ends[-1], *self._in_stage)

    def _visit_plan(self, client: int) -> StagePlan:
        return self.narrowing.visit_plan(self.plan, client, self.rounds_done, *self._in_stage)

    def _returning(self, executor: Executor[Result], drawn: Participation) -> Iterator[tuple[Visit, Result]]:
        """Payload up: what comes back of those that trained."""
        for visit, result in executor.train(self._departing(drawn)):
            self.dispatch.trained(visit.client, visit.plan)
            executor.trained(visit, result)
            if visit.upload is not None:
                yield visit, result
