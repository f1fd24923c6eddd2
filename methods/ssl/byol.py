"""BYOL (Grill et al. 2020): predict the momentum branch's projection of the other view."""

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import MoCoProjectionHead
from torch import Tensor

from fedbench.config.schema import SSLConfig
from fedbench.encoders import Encoder
from fedbench.ssl import SSLMethod, StepOutput


class BYOL(SSLMethod):
    """2 - 2 cos(q1, k2) + 2 - 2 cos(q2, k1).

    Departure from BYOL: its projection head has two layers and no last BatchNorm. [LW] Table 2 gives FedBYOL
    the same FLOPs and bytes as FedMoCoV3, so its heads are the same, and so are ours.
    """

    def __init__(self, encoder: Encoder, config: SSLConfig) -> None:
        super().__init__(encoder)
        hidden, out = config.hidden_dim, config.output_dim
        self.negative_cosine = NegativeCosineSimilarity()
        self.projection_head = MoCoProjectionHead(encoder.feature_dim, hidden, out, num_layers=3, batch_norm=True)
        self.prediction_head = MoCoProjectionHead(out, hidden, out, num_layers=2, batch_norm=True)
        self.add_target(config.momentum)

    def training_step(self, views: tuple[Tensor, Tensor], batch_idx: int = 0) -> StepOutput:
        """Sum of both directions, each in [0, 4]."""
        x1, x2 = views
        z1, z2 = self.project(x1), self.project(x2)
        q1, q2 = self.prediction_head(z1), self.prediction_head(z2)
        k1, k2 = self.target_project(x1), self.target_project(x2)
        loss = 4 + 2 * self.negative_cosine(q1, k2) + 2 * self.negative_cosine(q2, k1)
        return {"loss": loss, "projections": (z1, z2)}
