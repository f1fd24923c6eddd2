"""Losses that more than one plugin uses. Shapes: B samples, D output dimensions."""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(q_BD: Tensor, k_BD: Tensor, temperature: float) -> Tensor:
    """l(q, k) = mean_i -log( exp(q_i.k_i / T) / sum_j exp(q_i.k_j / T) ), q and k normalised  ([LW] Eq. 2)."""
    similarity_BB = F.normalize(q_BD, dim=1) @ F.normalize(k_BD, dim=1).T
    positives_B = torch.arange(len(q_BD), device=q_BD.device)
    return F.cross_entropy(similarity_BB / temperature, positives_B)
