"""MoCo v3 (Chen et al. 2021) as [LW] trains it: InfoNCE over the batch against a momentum branch, no queue."""

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import MoCoProjectionHead
from torch import Tensor

from fedbench.config.schema import SSLConfig
from fedbench.encoders import Encoder
from fedbench.ssl import SSLMethod, StepOutput


def info_nce(q_BD: Tensor, k_BD: Tensor, temperature: float) -> Tensor:
    """l(q, k) = mean_i -log( exp(q_i.k_i / T) / sum_j exp(q_i.k_j / T) ), q and k normalised  ([LW] Eq. 2)."""
    similarity_BB = F.normalize(q_BD, dim=1) @ F.normalize(k_BD, dim=1).T
    positives_B = torch.arange(len(q_BD), device=q_BD.device)
    # The original multiplies by 2T to keep the scale of its learning rate; [LW] Eq. 2 does not.
    return F.cross_entropy(similarity_BB / temperature, positives_B)


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
        loss = info_nce(q1, k2, self.temperature) + info_nce(q2, k1, self.temperature)
        return {"loss": loss, "projections": (z1, z2)}
