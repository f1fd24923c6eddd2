"""L-DAWA (Rehman et al. 2023, arXiv:2307.07393): a client's layers count by their angle to the global ones.

Read: the abstract and what others say of it; "layer" is a tensor here. Excepted, ours: buffers, and tensors of one
value or of no length.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fedbench.federation import ClientUpdate, Mechanism, ServerState


@dataclass(frozen=True)
class LDAWA(Mechanism):
    """w <- 1/K sum_k cos(w_k, w_g) w_k for each tensor w, over the K clients that sent it, all of one weight.

    Clients that did not move are averaged as they are; those that moved alike are shrunk by their cosine.
    """

    def receive(self, update: ClientUpdate, server: ServerState) -> ClientUpdate:
        """The update with each parameter scaled by its cosine to the server's."""
        scaled = {
            key: cosine(value, server.values[key]) * value if key in server.parameters else value
            for key, value in update.state.items()
        }
        return replace(update, state=scaled, num_samples=1)


def cosine(value: Tensor, reference: Tensor) -> float:
    """Of two tensors of one shape as vectors; exactly 1 for equal ones."""
    if value.numel() == 1 or not value.any() or not reference.any() or torch.equal(value, reference):
        return 1.0
    return F.cosine_similarity(value.double().flatten(), reference.double().flatten(), dim=0, eps=0.0).item()
