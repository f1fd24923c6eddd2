"""ProgFed (Wang et al. 2022, arXiv:2110.05323): the encoder grows; what is new is warmed up before all is trained.

The published classifier of a stage is our heads: they are discarded at each growth, and begin as they began in the
first stage. The last stage is longer than the others: of the published 3,000 rounds in four stages it has 1,875.
Stages grow by blocks, as those of Prog-FedSSL.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from fedbench.federation import GrowingStrategy, StagePlan, Turn
from fedbench.federation.plan import split_rounds


@dataclass(frozen=True)
class ProgFed(GrowingStrategy):
    """With `warm_up=0`, `fresh_heads=false` and `last_share=null` it is Prog-FedSSL, to the bit."""

    warm_up: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    """Rounds at the beginning of a stage, but the first, in which its new blocks alone are trained and sent."""
    fresh_heads: bool = True
    """Whether the heads of the stage before are discarded."""
    last_share: Annotated[float, Field(gt=0, lt=1)] | None = 0.625
    """Share of all rounds that the last stage has, rounded to whole rounds; null: stages of one length."""

    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        """L_1 .. L_s in the encoder, all of them trained and uploaded."""
        return StagePlan.end_to_end(self.newest_blocks(stage, num_blocks).stop)

    def rounds_per_stage(self, rounds: int, num_stages: int) -> Sequence[int]:
        """The last stage has its share, the others the same number; each has one at least."""
        if self.last_share is None or num_stages == 1:
            return split_rounds(rounds, num_stages)
        last = min(max(round(self.last_share * rounds), 1), rounds - (num_stages - 1))
        return [*split_rounds(rounds - last, num_stages - 1), last]

    def begins_anew(self, stage: int) -> frozenset[str]:
        """The heads."""
        return frozenset({"heads"}) if self.fresh_heads else frozenset()

    def visit_plan(self, plan: StagePlan, turn: Turn) -> StagePlan:
        """In warm-up rounds the new blocks; norm and heads always."""
        is_warm_up = turn.round_in_stage < self.warm_up and plan.older > 0
        return plan.limited_to(plan.newest) if is_warm_up else plan
