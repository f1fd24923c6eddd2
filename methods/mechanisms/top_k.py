"""Top-k payloads: of each tensor group the k entries of largest magnitude, and where they are.

With `error_feedback` a client adds what it did not send to its next change (Stich et al. 2018, arXiv:1809.07599,
Algorithm 1); without it, as in FLASC (arXiv:2406.05233). k is chosen over the whole group, not for each tensor.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedbench.federation.sparse import Sparse


@dataclass(frozen=True)
class TopK(Sparse):
    """bytes = 4 k + min(4 k, ceil(n / 8)), k = ceil(density n); density 1: none, to the bit."""

    def choose(self, row_N: Tensor, count: int, draw: torch.Generator) -> Tensor:
        """Where the largest are (k), of equal ones the first."""
        return row_N.abs().sort(descending=True, stable=True).indices[:count]
