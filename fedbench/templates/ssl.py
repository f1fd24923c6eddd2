"""Mine: what it does in one line, and whose idea it is (arXiv number, equation)."""

import torch
from lightly.models.modules.heads import SimCLRProjectionHead
from pydantic import NonNegativeFloat
from torch import Tensor

from fedbench.config.schema import SSLConfig
from fedbench.encoders import Encoder
from fedbench.ssl import SSLMethod, StepOutput


class MineConfig(SSLConfig):
    """Keys of its own: ssl={name: ./mine.py, off_diagonal: 0.1}; `fedbench list ssl ./mine.py` shows them."""

    off_diagonal: NonNegativeFloat = 1.0
    """Weight of what keeps the dimensions apart."""


class Mine(SSLMethod):
    """Pulls the two views of an image together, and their dimensions apart.

    `num_views = 1` asks for one view, `takes_crops = True` for the small ones of `augmentation.local_crops` too,
    which come last; `begin_visit` and `end_visit` are for what a client keeps.
    """

    def __init__(self, encoder: Encoder, config: MineConfig) -> None:
        super().__init__(encoder)
        self.off_diagonal = config.off_diagonal
        self.projection_head = SimCLRProjectionHead(encoder.feature_dim, config.hidden_dim, config.output_dim)

    def training_step(self, views: tuple[Tensor, Tensor], batch_idx: int = 0) -> StepOutput:
        """Loss over two views (B, C, H, W) of the same images: ||C - I||^2 / D of their cross-correlation C."""
        z1_BD, z2_BD = self.project(views[0]), self.project(views[1])
        a_BD, b_BD = ((z - z.mean(0)) / (z.std(0) + 1e-6) for z in (z1_BD, z2_BD))
        correlation_DD = a_BD.T @ b_BD / len(a_BD)
        identity_DD = torch.eye(len(correlation_DD), device=correlation_DD.device)
        weight_DD = identity_DD + self.off_diagonal * (1 - identity_DD)
        loss = (weight_DD * (correlation_DD - identity_DD).square()).sum(1).mean()
        return {"loss": loss, "projections": (z1_BD, z2_BD)}
