"""Prototypes: a linear layer whose rows have length one. Shapes: B samples, D dimensions, K prototypes."""

import torch.nn.functional as F
from torch import Tensor, nn


class UnitLinear(nn.Linear):
    """x_BD -> x W^T, each row of W divided by its length whenever it is used.

    So a mean of clients' rows, whose lengths are less than one, is a prototype all the same. It is weight
    normalisation with all lengths fixed at one, in plain tensors that copy.deepcopy takes.
    """

    def __init__(self, dim: int, num_prototypes: int) -> None:
        super().__init__(dim, num_prototypes, bias=False)

    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, K); cosines where x has length one."""
        return F.linear(x_BD, F.normalize(self.weight, dim=1))
