"""MoCo v3 (Chen et al. 2021) as [LW] trains it: InfoNCE over the batch against a momentum branch, no queue."""

from lightly.models.modules.heads import MoCoProjectionHead
from torch import Tensor

from fedbench.config.schema import SSLConfig
from fedbench.encoders import Encoder
from fedbench.losses import info_nce
from fedbench.ssl import SSLMethod, StepOutput


class MoCoV3(SSLMethod):
    """Heads of [LW] Sec. 4.1: H has three layers, P two, BatchNorm after each."""

    def __init__(self, encoder: Encoder, config: SSLConfig) -> None:
        super().__init__(encoder)
        hidden, out = config.hidden_dim, config.output_dim
        self.temperature = config.temperature
        self.projection_head = MoCoProjectionHead(encoder.feature_dim, hidden, out, num_layers=3, batch_norm=True)
        self.prediction_head = MoCoProjectionHead(out, hidden, out, num_layers=2, batch_norm=True)
        self.add_target(config.momentum)

    def training_step(self, views: tuple[Tensor, Tensor], batch_idx: int = 0) -> StepOutput:
        """l(q1, k2) + l(q2, k1): [LW] Eq. 2 in both directions."""
        x1, x2 = views
        z1, z2 = self.project(x1), self.project(x2)
        q1, q2 = self.prediction_head(z1), self.prediction_head(z2)
        k1, k2 = self.target_project(x1), self.target_project(x2)
        # The original multiplies by 2T to keep the scale of its learning rate; [LW] Eq. 2 does not.
        loss = info_nce(q1, k2, self.temperature) + info_nce(q2, k1, self.temperature)
        return {"loss": loss, "projections": (z1, z2)}
