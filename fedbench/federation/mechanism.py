"""What combines with any strategy: an added loss, what a client keeps, a narrower plan, a step on the server.

A mechanism is one file in `methods/mechanisms/`, and is switched on under its name in the strategy's
configuration: `strategy: {name: fedssl, proximal: {mu: 0.1}}`. A whole one:

    @dataclass(frozen=True)
    class Proximal(Mechanism):
        mu: float = 0.01

        def local_loss(self, step: LocalStep) -> Tensor | None:
            pulls = [(w - step.received[key]).square().sum() for key, w in step.trained.items()]
            return self.mu / 2 * torch.stack(pulls).sum()
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict

from fedbench.federation.plan import StagePlan
from fedbench.plugin_fields import FIELDS

if TYPE_CHECKING:
    from torch import Tensor

    from fedbench.config.schema import Config
    from fedbench.encoders.tensor_groups import Specs, StateDict
    from fedbench.federation.aggregation import ServerState
    from fedbench.federation.codec import Codec
    from fedbench.federation.server_training import ServerTraining
    from fedbench.federation.strategy import ClientUpdate
    from fedbench.federation.turn import Turn
    from fedbench.training.local import LocalStep
    from fedbench.training.visit import LocalVisit


@dataclass(frozen=True)
class Mechanism:
    """Each hook does nothing unless a mechanism says otherwise.

    Attributes:
        needs: sections of a configuration without which it cannot work; `fedbench check` has them.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FIELDS
    needs: ClassVar[Mapping[str, Any]] = {}

    def auxiliary(self) -> float | Mapping[str, Any] | None:
        """Images that the server needs: a share of the pre-training pool, a section `data`, or None."""
        return None

    def check(self, config: Config) -> None:
        """Refuse a configuration with which the mechanism cannot work, by a `UserError`."""

    def begin_visit(self, visit: LocalVisit) -> None:
        """Before a client's first step: where it starts from, what it is to have of earlier visits."""

    def end_visit(self, visit: LocalVisit) -> None:
        """Behind a client's last step: what it keeps for its next visit."""

    def local_loss(self, step: LocalStep) -> Tensor | None:
        """A term added to the client's loss, or None."""
        return None

    def visit_plan(self, plan: StagePlan, turn: Turn) -> StagePlan:
        """The plan narrowed for one client in one round: less is run (and needed), trained or uploaded."""
        return plan

    def messages(self, trained: Specs, config: Config) -> Specs:
        """Tensors that travel beside the model: zeros on the server until it has others.

        Each is named as the tensor under training (in `trained`) that it belongs to and with which it travels, or
        by a name without a dot. One with a `direction` of its own travels that way alone, and belongs to none. A
        visit finds what it was sent in `visit.messages`, and sends with `visit.send`.
        """
        return {}

    def after_messages(self, arrived: StateDict, server: ServerState) -> StateDict:
        """What the server sends from now on, from what the round's clients sent, by name.

        `arrived`: the sum over clients of what travels both ways; what travels up alone put together, (clients,
        *shape), in the order of `server.clients`. `server.messages`: what the server sent so far.
        """
        return arrived

    def receive(self, update: ClientUpdate, server: ServerState) -> ClientUpdate:
        """A client's update as it goes into the aggregate: scaled, or with another weight."""
        return update

    def after_aggregate(self, values: StateDict, server: ServerState) -> StateDict:
        """What the server takes over instead of the aggregate `values`, for the same entries."""
        return values

    def ends_stage(self, server: ServerState) -> bool:
        """Whether the stage is over before its last round; asked after each, but for the last stage's.

        The rounds that it leaves go to the next stage. `profile`, which cannot know, predicts the fixed rounds.
        """
        return False

    def server_step(self, server: ServerTraining) -> None:
        """What the server does with the model after every aggregation."""

    def end_stage(self, server: ServerTraining) -> None:
        """What the server does with the model when a stage is over, after its last round's `server_step`."""

    def codec_of_finished(self) -> Codec | None:
        """How a block travels down that no client trains any more, where no other codec packs it; None: as it is.

        It packs the server's own values for everybody (`download_of=values`), and loses nothing.
        """
        return None

    def figures(self, config: Config, rounds: int) -> Mapping[str, float]:
        """What it tells of a run after its first `rounds` rounds, such as `privacy/epsilon`.

        It stands in each round's record, the summary and the profile, so it must follow from the configuration.
        """
        return {}


def figures(mechanisms: Iterable[Mechanism], config: Config, rounds: int) -> dict[str, float]:
    """What all of them tell of a run after its first `rounds` rounds."""
    return {key: value for one in mechanisms for key, value in one.figures(config, rounds).items()}
