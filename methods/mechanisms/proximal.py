"""Proximal alignment (FedProx, Li et al. 2020; [LW] v4 Sec. 4.6, PA)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedbench.federation import LocalStep, Mechanism


@dataclass(frozen=True)
class Proximal(Mechanism):
    """mu/2 * sum ||w - w_g||^2 over trained parameters; w_g: as received in this round, detached."""

    mu: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the term; 0: none."""

    def local_loss(self, step: LocalStep) -> Tensor | None:
        """The proximal term; its gradient is mu * (w - w_g)."""
        pulls = [(w - step.received[key].detach()).square().sum() for key, w in step.trained.items()]
        return self.mu / 2 * torch.stack(pulls).sum()
