"""FedDecorr (Shi et al. 2023, arXiv:2210.00226): clients keep the dimensions of what they learn uncorrelated.

Shapes: B samples, D output dimensions.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedbench.federation import LocalStep, Mechanism

EPSILON = 1e-6  # under the root: a dimension that is constant has no correlation, and a finite gradient


@dataclass(frozen=True)
class FedDecorr(Mechanism):
    """beta / D^2 ||K||_F^2, K the correlation matrix of the projections of a batch (Eq. 7), mean over the views.

    Departures: K is of the projections of both views, which is what an SSL method tells (there: of the features
    that a classifier sees). The authors' code leaves out the diagonal, which is constant, and divides otherwise.
    """

    beta: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the term; 0: none; 0.1 in the paper."""

    def local_loss(self, step: LocalStep) -> Tensor | None:
        """The term, in [beta / D, beta]: alone on the diagonal, or all dimensions the same."""
        return self.beta * torch.stack([self.term(z) for z in step.output["projections"]]).mean()

    def term(self, z_BD: Tensor) -> Tensor:
        """||K||_F^2 / D^2."""
        centred_BD = z_BD - z_BD.mean(dim=0)
        variance_D = centred_BD.square().mean(dim=0)
        standard_BD = centred_BD * (variance_D + EPSILON).rsqrt()
        correlation_DD = standard_BD.T @ standard_BD / len(z_BD)
        return correlation_DD.square().mean()
