"""MoCo v2 (Chen et al. 2020, arXiv:2003.04297): InfoNCE against a queue of the momentum branch's earlier outputs.

Shapes: B samples, D output dimensions, K entries of the queue.
"""

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import MoCoProjectionHead
from torch import Tensor

from fedbench.config.schema import Count, SSLConfig
from fedbench.encoders import Encoder
from fedbench.federation import LocalVisit
from fedbench.ssl import SSLMethod, StepOutput


class MoCoV2Config(SSLConfig):
    """Of the queue."""

    queue_size: Count = 4096
    """K: earlier projections that are negatives; 65536 in the paper."""
    keep_queue: bool = True
    """Whether a client goes on with its queue at its next visit of a stage; false: each visit starts it anew."""


def queue_nce(q_BD: Tensor, k_BD: Tensor, queue_KD: Tensor, temperature: float) -> Tensor:
    """mean_i -log( exp(q_i.k_i / T) / (exp(q_i.k_i / T) + sum_j exp(q_i.queue_j / T)) ), all of length one.

    Eq. 1 of MoCo (arXiv:1911.05722).
    """
    positive_B1 = (q_BD * k_BD).sum(dim=1, keepdim=True)
    similarity_BN = torch.cat([positive_B1, q_BD @ queue_KD.T], dim=1) / temperature
    return F.cross_entropy(similarity_BN, torch.zeros(len(q_BD), dtype=torch.long, device=q_BD.device))


class MoCoV2(SSLMethod):
    """Two-layer projection head without BatchNorm, no prediction head; the queue never leaves the client.

    Departures: both views are query and key in turn, and the loss is the mean of both directions (there: view 1
    is the query), so that there are two projections; no shuffled BatchNorm, which needs several devices; the first
    entries of a queue are random directions, the same ones for everybody (there: random ones).
    """

    def __init__(self, encoder: Encoder, config: MoCoV2Config) -> None:
        super().__init__(encoder)
        self.temperature, self.keep_queue = config.temperature, config.keep_queue
        self.projection_head = MoCoProjectionHead(encoder.feature_dim, config.hidden_dim, config.output_dim)
        self.add_target(config.momentum)
        self.target_queue: Tensor
        self.register_buffer("target_queue", random_directions(config.queue_size, config.output_dim))

    def begin_visit(self, visit: LocalVisit) -> None:
        """Go on with the client's own queue; that of another stage is of another encoder."""
        kept = visit.kept("queue") if self.keep_queue and visit.same_stage else {}
        if kept:
            self.target_queue.copy_(kept["queue"])

    def end_visit(self, visit: LocalVisit) -> None:
        """Keep it."""
        if self.keep_queue:
            visit.keep("queue", {"queue": self.target_queue})

    @torch.no_grad()
    def rebuild_target(self) -> None:
        """The received model, and a new queue: what another client left in this one is not to be seen."""
        super().rebuild_target()
        self.target_queue.copy_(random_directions(*self.target_queue.shape))

    def target_follows(self) -> bool:
        """The queue apart, the target branch has the usual rules."""
        return True

    def training_step(self, views: tuple[Tensor, Tensor], batch_idx: int = 0) -> StepOutput:
        """The queue moves on by the 2B new keys when the loss is known."""
        z1, z2 = self.project(views[0]), self.project(views[1])
        keys = [F.normalize(self.target_project(view), dim=1) for view in views]
        queue_KD = self.target_queue.clone()  # the backward pass needs it as it is now
        queries = (F.normalize(z1, dim=1), F.normalize(z2, dim=1))
        pairs = zip(queries, keys[::-1], strict=True)
        losses = [queue_nce(q, k, queue_KD, self.temperature) for q, k in pairs]
        self.enqueue(keys)
        return {"loss": torch.stack(losses).mean(), "projections": (z1, z2)}

    @torch.no_grad()
    def enqueue(self, keys: list[Tensor]) -> None:
        """The newest come first, and the oldest fall out at the end."""
        self.target_queue.copy_(torch.cat([*keys, self.target_queue])[: len(self.target_queue)])


def random_directions(count: int, dim: int) -> Tensor:
    """Unit vectors (count, dim) on the CPU, always the same."""
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(0)), dim=1)
