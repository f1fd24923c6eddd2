"""Depth dropout ([LW] v4 Sec. 4.6; FLL, arXiv:2309.05213): a client runs some blocks only, and exchanges no other.

[LW] caps their number; FLL drops at random, at a rate. Both can be had, also together.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from fedbench.config.schema import Config
from fedbench.encoders import outline
from fedbench.errors import UserError
from fedbench.federation import Mechanism, StagePlan, Turn


@dataclass(frozen=True)
class DepthDropout(Mechanism):
    """At most `max_depth` blocks are run (6 in the paper's table), the newest ones always (`StagePlan.newest`).

    [LW] says of Prog-FedSSL and FedSSL that earlier blocks are skipped. FedSSL has no newest block in that sense;
    ours: the last one, as under a Prog-FedSSL that has come to its end.
    """

    max_depth: Annotated[int, Field(ge=1, le=1_000)] = 6
    """Blocks that a client runs at most; 6 in the paper's table."""
    rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability with which each earlier block is dropped, for each client and round; 0: the cap alone."""

    def check(self, config: Config) -> None:
        """Blocks can be left out only where each keeps the shape of its input."""
        if not outline(config.encoder).keeps_shape:
            raise UserError(
                f"strategy.depth_dropout: blocks of encoder.name={config.encoder.name} change the shape of their "
                "input; allowed: encoders whose blocks keep it, such as vit"
            )

    def visit_plan(self, plan: StagePlan, turn: Turn) -> StagePlan:
        """The newest blocks, and earlier ones drawn without replacement until there are `max_depth`."""
        earlier = [block for block in range(plan.depth) if block not in plan.newest]
        room = max(self.max_depth - len(plan.newest), 0)
        order = torch.randperm(len(earlier), generator=turn.draw).tolist()
        dropped = set(order[room:])
        if self.rate:
            chances = torch.rand(len(earlier), generator=turn.draw).tolist()
            dropped |= {number for number, chance in enumerate(chances) if chance < self.rate}
        return plan.without(earlier[number] for number in dropped)
