"""SimCLR (Chen et al. 2020): NT-Xent over both views of the batch; no target branch, no prediction head."""

from lightly.loss import NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead
from torch import Tensor

from fedbench.config.schema import SSLConfig
from fedbench.encoders import Encoder
from fedbench.ssl import SSLMethod, StepOutput


class SimCLR(SSLMethod):
    """Three-layer projection head, as for the other methods ([LW] Sec. 4.1)."""

    def __init__(self, encoder: Encoder, config: SSLConfig) -> None:
        super().__init__(encoder)
        self.projection_head = SimCLRProjectionHead(
            encoder.feature_dim, config.hidden_dim, config.output_dim, num_layers=3
        )
        self.nt_xent = NTXentLoss(config.temperature, memory_bank_size=0)

    def training_step(self, views: tuple[Tensor, Tensor], batch_idx: int = 0) -> StepOutput:
        """NT-Xent over the 2B projections: each has one positive and 2B - 2 negatives."""
        z1, z2 = self.project(views[0]), self.project(views[1])
        return {"loss": self.nt_xent(z1, z2), "projections": (z1, z2)}
