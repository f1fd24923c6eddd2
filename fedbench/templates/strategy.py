"""Mine: what it does in one line, and whose idea it is (arXiv number, equation)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedbench.federation import LocalStep, StagePlan, Strategy


@dataclass(frozen=True)
class Mine(Strategy):
    """Its fields are its keys: `strategy.mu=0.1`."""

    mu: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the pull towards the received model."""

    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        """Which blocks exist in a stage, which are trained, which are sent back: here all of them."""
        return StagePlan(num_blocks, trainable=range(num_blocks), upload=range(num_blocks))

    def local_loss(self, step: LocalStep) -> Tensor | None:
        """A term added to the SSL loss: mu / 2 ||w - w_received||^2; None for none."""
        if self.mu == 0:
            return None
        pulls = [(w - step.received[key]).square().sum() for key, w in step.trained.items()]
        return self.mu / 2 * torch.stack(pulls).sum()
