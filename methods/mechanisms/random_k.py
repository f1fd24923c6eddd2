"""Random-k payloads (random mask of Konecny et al. 2016, arXiv:1610.05492): k entries of each tensor group."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedbench.federation.sparse import Sparse


@dataclass(frozen=True)
class RandomK(Sparse):
    """bytes = 4 k + min(4 k, ceil(n / 8)), k = ceil(density n); density 1: none, to the bit.

    Ours: indices travel too, though a seed would do; entries are not scaled by n / k, which suits error feedback.
    """

    def choose(self, row_N: Tensor, count: int, draw: torch.Generator) -> Tensor:
        """Where the drawn ones are (k)."""
        return torch.randperm(len(row_N), generator=draw)[:count]
