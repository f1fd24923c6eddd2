"""Rotation prediction (Gidaris et al. 2018, arXiv:1803.07728) with a target branch: the model of Orchestra.

Its loss is the regulariser of Orchestra (Lubana et al. 2022, arXiv:2205.11506) against degenerate clusters. These
are made by the mechanism `orchestra`, without which two views and the target branch are computed for nothing.

Shapes: B samples, C channels, D output dimensions.
"""

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import MoCoProjectionHead
from torch import Tensor, nn

from fedbench.config.schema import SSLConfig
from fedbench.encoders import Encoder
from fedbench.ssl import SSLMethod, StepOutput

TURNS = 4  # of 0, 90, 180 and 270 degrees


class Rotation(SSLMethod):
    """Cross-entropy of the turn by which an image was rotated; `ssl.temperature` is not used.

    Departures: the i-th image of a batch is turned i mod 4 times, so that turns are equally many and nothing is
    drawn (there: each image by all turns), in the first half of a batch of view 1, in the second of view 2; heads
    as BYOL's here, and the turn is read off the projection.
    """

    def __init__(self, encoder: Encoder, config: SSLConfig) -> None:
        super().__init__(encoder)
        self.projection_head = MoCoProjectionHead(
            encoder.feature_dim, config.hidden_dim, config.output_dim, num_layers=3, batch_norm=True
        )
        self.prediction_head = nn.Linear(config.output_dim, TURNS)
        self.add_target(config.momentum)

    def training_step(self, views: tuple[Tensor, Tensor], batch_idx: int = 0) -> StepOutput:
        """About log 4 where no turn is told from another."""
        x1, x2 = views
        half = len(x1) // 2
        rotated, turns_B = turned(torch.cat([x1[:half], x2[half:]]))
        loss = F.cross_entropy(self.prediction_head(self.project(rotated)), turns_B)
        targets = (self.target_project(x1), self.target_project(x2))
        return {"loss": loss, "projections": (self.project(x1), self.project(x2)), "targets": targets}


def turned(view: Tensor) -> tuple[Tensor, Tensor]:
    """The i-th image (B, C, H, W), H = W, turned i mod 4 times, and how often each was turned (B,)."""
    index_B = torch.arange(len(view), device=view.device)
    turns_B = index_B % TURNS
    every = torch.stack([view.rot90(turn, (2, 3)) for turn in range(TURNS)])
    return every[turns_B, index_B], turns_B
