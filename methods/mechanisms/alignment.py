"""Representation alignment of LW-FedSSL @v3: pull the local projections towards the received global model's.

The text of @v3 could not be read in full; the form of the term is our reading, and `kind` offers two others.
Shapes: B samples, D output dimensions.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedbench.federation import LocalStep, LocalVisit, Mechanism
from fedbench.losses import info_nce


@dataclass(frozen=True)
class Alignment(Mechanism):
    """alpha * [ l(z1, z1_g) + l(z2, z2_g) ], z_g from the global model on the same view, without gradient."""

    kind: Literal["infonce", "cosine", "mse"] = "infonce"
    """Form of the term: InfoNCE, 1 - cosine, or squared distance of unit vectors."""
    alpha: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the term; 0: none."""
    tau: Annotated[float, Field(gt=0)] = 0.05
    """Temperature of infonce."""

    def begin_visit(self, visit: LocalVisit) -> None:
        """The global model, frozen."""
        visit.freeze("received")

    def local_loss(self, step: LocalStep) -> Tensor | None:
        """The alignment term, summed over the two views."""
        pairs = zip(step.output["projections"], step.views, strict=True)
        return self.alpha * torch.stack([self.term(z, step.teachers["received"](view)) for z, view in pairs]).sum()

    def term(self, z_BD: Tensor, global_z_BD: Tensor) -> Tensor:
        """l(z, z_g): InfoNCE with the same sample as positive, 1 - cos, or squared distance of unit vectors."""
        if self.kind == "infonce":
            return info_nce(z_BD, global_z_BD, self.tau)
        if self.kind == "cosine":
            return (1 - F.cosine_similarity(z_BD, global_z_BD)).mean()
        return (F.normalize(z_BD, dim=1) - F.normalize(global_z_BD, dim=1)).square().sum(1).mean()
