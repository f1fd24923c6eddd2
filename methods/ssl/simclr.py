"""SimCLR (Chen et al. 2020): NT-Xent over both views of the batch; no target branch, no prediction head."""

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import SimCLRProjectionHead
from torch import Tensor

from fedbench.config.schema import SSLConfig
from fedbench.encoders import Encoder
from fedbench.ssl import SSLMethod, StepOutput


def nt_xent(z1_BD: Tensor, z2_BD: Tensor, temperature: float) -> Tensor:
    """mean_i -log( exp(z_i.z_p / T) / sum_{j != i} exp(z_i.z_j / T) ) over both views; p: i's other view  (Eq. 1).

    lightly's NTXentLoss gives the same figure, but selects by a mask, and a selection has no shape that can be
    traced before there is data.
    """
    z_2BD = F.normalize(torch.cat([z1_BD, z2_BD]), dim=1)
    itself = torch.eye(len(z_2BD), dtype=torch.bool, device=z_2BD.device)
    similarity = (z_2BD @ z_2BD.T / temperature).masked_fill(itself, float("-inf"))
    positives = torch.arange(len(z_2BD), device=z_2BD.device).roll(len(z1_BD))
    return F.cross_entropy(similarity, positives)


class SimCLR(SSLMethod):
    """Three-layer projection head, as for the other methods ([LW] Sec. 4.1)."""

    def __init__(self, encoder: Encoder, config: SSLConfig) -> None:
        super().__init__(encoder)
        self.projection_head = SimCLRProjectionHead(
            encoder.feature_dim, config.hidden_dim, config.output_dim, num_layers=3
        )
        self.temperature = config.temperature

    def training_step(self, views: tuple[Tensor, Tensor], batch_idx: int = 0) -> StepOutput:
        """NT-Xent over the 2B projections: each has one positive and 2B - 2 negatives."""
        z1, z2 = self.project(views[0]), self.project(views[1])
        return {"loss": nt_xent(z1, z2, self.temperature), "projections": (z1, z2)}
