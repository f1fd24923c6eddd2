"""Barlow Twins (Zbontar et al. 2021, arXiv:2103.03230): the views' cross-correlation is to be the identity."""

from lightly.loss import BarlowTwinsLoss
from lightly.models.modules.heads import BarlowTwinsProjectionHead
from pydantic import NonNegativeFloat
from torch import Tensor

from fedbench.config.schema import SSLConfig
from fedbench.encoders import Encoder
from fedbench.ssl import SSLMethod, StepOutput


class BarlowTwinsConfig(SSLConfig):
    """Of the loss."""

    off_diagonal: NonNegativeFloat = 5e-3
    """lambda: weight of the correlations between different dimensions; Sec. 2.2."""


class BarlowTwins(SSLMethod):
    """sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2, C of standardised projections  (Eq. 1, 2)."""

    def __init__(self, encoder: Encoder, config: BarlowTwinsConfig) -> None:
        super().__init__(encoder)
        self.projection_head = BarlowTwinsProjectionHead(encoder.feature_dim, config.hidden_dim, config.output_dim)
        self.criterion = BarlowTwinsLoss(config.off_diagonal)

    def training_step(self, views: tuple[Tensor, Tensor], batch_idx: int = 0) -> StepOutput:
        """At least 0; D where nothing correlates."""
        z1, z2 = self.project(views[0]), self.project(views[1])
        return {"loss": self.criterion(z1, z2), "projections": (z1, z2)}
