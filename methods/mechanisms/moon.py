"""Model-contrastive alignment (MOON, Li et al. 2021; [LW] v4 Sec. 4.6, RA).

Shapes: B samples, D output dimensions.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedbench.federation import LocalStep, LocalVisit, Mechanism


@dataclass(frozen=True)
class Moon(Mechanism):
    """mu * mean_i -log( exp(cos(z, z_g)/tau) / (exp(cos(z, z_g)/tau) + exp(cos(z, z_prev)/tau)) ), over two views.

    z_g: the received global model's projection; z_prev: that of the client's own model after its last visit.
    A client has no previous model at its first visit, nor at its first visit of a stage, where the model has
    another shape: there the term is absent.
    """

    mu: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the term; 0: none."""
    tau: Annotated[float, Field(gt=0)] = 0.5
    """Temperature of the two similarities."""

    def begin_visit(self, visit: LocalVisit) -> None:
        """The two models of the term, frozen."""
        visit.freeze("received")
        if visit.same_stage and (own := visit.kept("own")):
            visit.freeze("previous", own)

    def end_visit(self, visit: LocalVisit) -> None:
        """The client's own model, for its next visit."""
        visit.keep("own", visit.trained)

    def local_loss(self, step: LocalStep) -> Tensor | None:
        """The model-contrastive term, or None without a previous model."""
        if "previous" not in step.teachers:
            return None
        received, previous = step.teachers["received"], step.teachers["previous"]
        pairs = zip(step.output["projections"], step.views, strict=True)
        return self.mu * torch.stack([self.term(z, received(view), previous(view)) for z, view in pairs]).sum()

    def term(self, z_BD: Tensor, global_z_BD: Tensor, previous_z_BD: Tensor) -> Tensor:
        """Cross-entropy of two classes: near the global model (0) or near the previous one (1)."""
        similarities_B2 = torch.stack(
            [F.cosine_similarity(z_BD, other) for other in (global_z_BD, previous_z_BD)], dim=1
        )
        return F.cross_entropy(
            similarities_B2 / self.tau, torch.zeros(len(z_BD), dtype=torch.long, device=z_BD.device)
        )
