"""A stage ends when its newest blocks move no further: ProFL (arXiv:2404.13349), SmartFreeze (arXiv:2408.09101).

Read: abstracts, and the criterion in outline. That it is one ratio for all of a stage's newest blocks, over a
window of rounds, and that the rounds left over go to the next stage, is our reading; the papers' memory-aware
choice of clients and output modules are left out.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field

from fedbench.encoders.tensor_groups import StateDict, block_groups, select
from fedbench.federation import Mechanism, ServerState


@dataclass(frozen=True)
class EffectiveMovement(Mechanism):
    """Effective movement: ||w_r - w_(r-H)|| / sum_i ||w_(i+1) - w_i|| over the last H rounds of the stage.

    1 on a straight line, about 1 / sqrt(H) on a random walk. With threshold 0 no stage ends early, and a run is
    the strategy's own, to the bit. The run has as many rounds as ever, the last stage all that are left.
    """

    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """A stage ends when the effective movement is below it; 0: at its fixed round."""
    window: Annotated[int, Field(ge=2, le=1_000_000)] = 4
    """H, rounds; the server keeps the newest blocks of H + 1 rounds, and no stage ends before it has them."""

    def ends_stage(self, server: ServerState) -> bool:
        """Whether the newest blocks have moved less than `threshold` for the length of their path."""
        moving = server.plan.newest or server.plan.trainable  # a stage may add no block
        blocks = select(server.values, block_groups(moving))
        self._remember({key: value for key, value in blocks.items() if key in server.parameters}, server)
        path = [server.memory[name] for name in sorted(server.memory)]
        if len(path) <= self.window:
            return False
        steps = [(after - before).norm() for before, after in pairwise(path)]
        length = torch.stack(steps).sum()
        return bool((path[-1] - path[0]).norm() < self.threshold * length)

    def _remember(self, weights: StateDict, server: ServerState) -> None:
        """One flat tensor a round, named by stage and round."""
        stage = f"{server.stage:04d}/"
        flat = torch.cat([value.double().flatten() for value in weights.values()])
        server.memory[f"{stage}{server.round_index:08d}"] = flat
        for name in sorted(server.memory)[: -self.window - 1]:
            del server.memory[name]
        for name in [name for name in server.memory if not name.startswith(stage)]:
            del server.memory[name]
