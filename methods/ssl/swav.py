"""SwAV (Caron et al. 2020, arXiv:2006.09882): predict a view's prototypes from another view.

Shapes: B samples, D output dimensions, K prototypes.
"""

from typing import Annotated

import torch.nn.functional as F
from lightly.loss import SwaVLoss
from lightly.models.modules.heads import SwaVProjectionHead
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from fedbench.config.schema import Count, SSLConfig
from fedbench.encoders import Encoder
from fedbench.ssl import SSLMethod, StepOutput

from ._unit_linear import UnitLinear


class SwAVConfig(SSLConfig):
    """Of prototypes and assignments."""

    num_prototypes: Count = 3000
    """K."""
    epsilon: PositiveFloat = 0.05
    """Entropy of the assignments (Eq. 3); smaller ones are harder."""
    sinkhorn_iterations: Annotated[PositiveInt, Field(le=1_000)] = 3
    """Of rows and columns, towards equally used prototypes."""


class SwAV(SSLMethod):
    """l(z1, q2) + l(z2, q1), and l(z_s, q) of small views: Eq. 2 and 6, as a mean; q: assignments by Sinkhorn.

    The prototypes are the prediction head: trained, sent and averaged like one.

    Departures: the prototypes have length one wherever they are used, and the gradient knows it (there: they are
    divided by their length before every step); they are trained from the first step (there: from the second
    epoch); no queue of earlier samples, so that equal use is that of a batch alone.
    """

    takes_crops = True

    def __init__(self, encoder: Encoder, config: SwAVConfig) -> None:
        super().__init__(encoder)
        self.projection_head = SwaVProjectionHead(encoder.feature_dim, config.hidden_dim, config.output_dim)
        self.prediction_head = UnitLinear(config.output_dim, config.num_prototypes)
        self.criterion = SwaVLoss(config.temperature, config.sinkhorn_iterations, config.epsilon)

    def training_step(self, views: tuple[Tensor, ...], batch_idx: int = 0) -> StepOutput:
        """Assignments are made of the two views; every other view predicts them."""
        z = [self.project(view) for view in views]
        scores_BK = [self.prediction_head(F.normalize(one, dim=1)).float() for one in z]
        loss = self.criterion(scores_BK[:2], scores_BK[2:])
        return {"loss": loss.squeeze(), "projections": (z[0], z[1])}
