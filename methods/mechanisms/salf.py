"""SALF (Lang et al. 2024, arXiv:2403.18375): the slow end their backward pass early, and send what it reached.

A straggler's steps are all truncated at one block of each visit: blocks below it have no gradient and are not
kept for one, so that its FLOPs and memory fall. Read: abstract and method in outline; that the depth reached is
uniform is our reading.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedbench.encoders.tensor_groups import block_groups, group_of
from fedbench.federation import Mechanism, ServerState, StagePlan, Turn


@dataclass(frozen=True)
class SALF(Mechanism):
    """Each block is averaged over those who sent it, and w <- (mean - p w) / (1 - p) undoes the bias.

    p: probability that no client of the round reaches the block, so that the server's new value is, on average,
    the mean that all clients would give. Without stragglers it is the strategy itself, to the bit.
    """

    stragglers: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability that a client is one, in each round anew."""
    correction: bool = True
    """Whether the bias is undone."""

    def visit_plan(self, plan: StagePlan, turn: Turn) -> StagePlan:
        """A straggler trains and sends a suffix of the blocks, one at least; each length is equally likely."""
        trainable = sorted(plan.trainable)
        is_straggler = torch.rand((), generator=turn.draw).item() < self.stragglers
        first = int(torch.randint(len(trainable), (), generator=turn.draw)) if trainable else 0
        return plan.limited_to(trainable[first:]) if is_straggler else plan

    def after_aggregate(self, values: dict[str, Tensor], server: ServerState) -> dict[str, Tensor]:
        """The corrected mean of the parameters."""
        if not self.correction or self.stragglers == 0:
            return values
        missing = self.missing(server)
        return {
            key: _corrected(value, server.values[key], missing[group_of(key)])
            if key in server.parameters and group_of(key) in missing
            else value
            for key, value in values.items()
        }

    def missing(self, server: ServerState) -> dict[str, float]:
        """Group -> p. The stem goes with the first block."""
        trainable = sorted(server.plan.trainable)
        reached = [1 - self.stragglers * (1 - place / len(trainable)) for place in range(1, len(trainable) + 1)]
        chances = {
            group: (1 - one) ** server.num_drawn
            for block, one in zip(trainable, reached, strict=True)
            for group in block_groups([block])
        }
        return chances | ({"stem": chances["block_1"]} if "block_1" in chances else {})


def _corrected(mean: Tensor, old: Tensor, chance: float) -> Tensor:
    return ((mean.double() - chance * old.double()) / (1 - chance)).to(mean.dtype)
