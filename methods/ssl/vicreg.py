"""VICReg (Bardes et al. 2022, arXiv:2105.04906): invariance, variance and covariance of two views.

Shapes: B samples, D output dimensions.
"""

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import VICRegProjectionHead
from pydantic import NonNegativeFloat
from torch import Tensor

from fedbench.config.schema import SSLConfig
from fedbench.encoders import Encoder
from fedbench.ssl import SSLMethod, StepOutput

EPSILON = 1e-4  # under the root of Eq. 2


class VICRegConfig(SSLConfig):
    """Weights of the three terms; Sec. 4.2."""

    invariance: NonNegativeFloat = 25.0
    """lambda: of the squared distance of the two views."""
    variance: NonNegativeFloat = 25.0
    """mu: of what each dimension's standard deviation lacks to 1."""
    covariance: NonNegativeFloat = 1.0
    """nu: of the squared covariances of different dimensions."""


def variance_term(z_BD: Tensor) -> Tensor:
    """v(Z) = mean_d max(0, 1 - sqrt(Var(z_d) + epsilon))  (Eq. 1, 2)."""
    return F.relu(1 - (z_BD.var(dim=0) + EPSILON).sqrt()).mean()


def covariance_term(z_BD: Tensor) -> Tensor:
    """c(Z) = sum_{i != j} Cov(Z)_ij^2 / D  (Eq. 3, 4).

    lightly's gives the same figure, but selects by a mask, and a selection cannot be traced.
    """
    centred_BD = z_BD - z_BD.mean(dim=0)
    covariance_DD = centred_BD.T @ centred_BD / (len(z_BD) - 1)
    diagonal = torch.eye(len(covariance_DD), dtype=torch.bool, device=z_BD.device)
    return covariance_DD.masked_fill(diagonal, 0).square().sum() / len(covariance_DD)


def vicreg(z1_BD: Tensor, z2_BD: Tensor, config: VICRegConfig) -> Tensor:
    """lambda s(Z, Z') + mu [v(Z) + v(Z')] + nu [c(Z) + c(Z')]  (Eq. 6).

    As in the authors' code, and lightly's, the distance is the mean over dimensions too, and v that over both
    views: the published weights belong to these.
    """
    return (
        config.invariance * F.mse_loss(z1_BD, z2_BD)
        + config.variance * (variance_term(z1_BD) + variance_term(z2_BD)) / 2
        + config.covariance * (covariance_term(z1_BD) + covariance_term(z2_BD))
    )


class VICReg(SSLMethod):
    """No negatives, no target branch, no prediction head. It needs batches of at least two samples."""

    def __init__(self, encoder: Encoder, config: VICRegConfig) -> None:
        super().__init__(encoder)
        self.config = config
        self.projection_head = VICRegProjectionHead(encoder.feature_dim, config.hidden_dim, config.output_dim)

    def training_step(self, views: tuple[Tensor, Tensor], batch_idx: int = 0) -> StepOutput:
        """At least 0."""
        z1, z2 = self.project(views[0]), self.project(views[1])
        return {"loss": vicreg(z1, z2, self.config), "projections": (z1, z2)}
