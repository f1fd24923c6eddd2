"""Capacity tiers (ours; after HeteroFL, arXiv:2010.01264): a client trains as much as its memory allows.

A tier is the stage's row narrowed for its clients, nothing else: they run everything, train and send the newest
blocks.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated

from pydantic import Field

from fedbench.config.schema import Config
from fedbench.errors import UserError
from fedbench.federation import Mechanism, StagePlan, Turn


@dataclass(frozen=True)
class CapacityTiers(Mechanism):
    """The first `shares[0]` of the clients train the last `blocks[0]` blocks of a stage at most, and so on.

    One tier of as many blocks as there are is the strategy itself, to the bit.
    """

    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.5, 0.5)
    """Fractions of the clients, in the order of their numbers; together 1."""
    blocks: tuple[Annotated[int, Field(ge=1, le=1_000)], ...] = (1, 2)
    """Blocks that a client of each tier trains at most."""

    def check(self, config: Config) -> None:
        """As many shares as numbers of blocks; together they are all clients."""
        if len(self.shares) != len(self.blocks) or abs(sum(self.shares) - 1) > 1e-9:
            raise UserError(
                f"strategy.capacity_tiers: shares={list(self.shares)}, blocks={list(self.blocks)}; "
                "allowed: lists of one length, shares with the sum 1"
            )

    def visit_plan(self, plan: StagePlan, turn: Turn) -> StagePlan:
        """The newest blocks, as many as the client's tier trains."""
        ends = [share * turn.num_clients for share in accumulate(self.shares)]
        tier = next((number for number, end in enumerate(ends) if turn.client < end - 1e-9), len(ends) - 1)
        return plan.limited_to(sorted(plan.trainable)[-self.blocks[tier] :])
