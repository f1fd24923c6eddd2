"""Figures that say how a round went. Shapes: B samples, D dimensions, N clients, P uploaded values."""

import math

import torch
from torch import Tensor

from fedbench.encoders.tensor_groups import ENCODER, StateDict

PAIRED_CLIENTS = 16  # updates that are kept for the pairwise distance: bounds the memory


def effective_rank(z_BD: Tensor) -> float:
    """exp(entropy of the normalised singular values) of the centred projections (Roy and Vetterli 2007).

    Between 1 (all on a line: collapsed) and min(B - 1, D); NaN for projections that are not finite, or none.
    """
    if not z_BD.numel() or not torch.isfinite(z_BD).all():
        return math.nan
    singular = torch.linalg.svdvals((z_BD - z_BD.mean(0)).float())
    share = singular / singular.sum().clamp_min(1e-12)
    return torch.exp(-torch.special.xlogy(share, share).sum()).item()


def flatten(state: StateDict) -> Tensor:
    """All floating-point values of a state as one vector (P,), in its order (`decode` gives that of the names)."""
    return torch.cat([value.flatten().float() for value in state.values() if value.is_floating_point()])


class PairwiseL2:
    """Mean over pairs of clients of ||u_n - u_m||_2 ([LW] v4 Fig. 6), of the first `PAIRED_CLIENTS` updates.

    An update that holds other tensors than the first one (its client ran other blocks) is left out.
    """

    def __init__(self) -> None:
        self._rows_NP = torch.empty(0, 0)
        self._count = 0
        self._keys: set[str] = set()

    def add(self, update: StateDict) -> None:
        """Keep it, unless there are enough. Rows of one matrix: to stack them later would double them."""
        self._keys = self._keys or set(update)
        if self._count == PAIRED_CLIENTS or self._keys != set(update):
            return
        values = flatten(update)
        if self._count == 0:
            self._rows_NP = values.new_empty(PAIRED_CLIENTS, len(values))  # unfilled pages take no memory
        self._rows_NP[self._count] = values
        self._count += 1

    def mean(self) -> float | None:
        """None for fewer than two."""
        if self._count < 2:
            return None
        return torch.nn.functional.pdist(self._rows_NP[: self._count]).mean().item()


def step_norm(before: StateDict, after: StateDict) -> float:
    """||after - before||_2 over the floating-point values of `after`."""
    return (flatten(after) - flatten({key: before[key] for key in after})).norm().item()


def divergence(own: StateDict, received: StateDict) -> Tensor | None:
    """Mean over the encoder's weight matrices of ||w_own - w_received||_2; None if there is nothing to compare."""
    distances = [
        torch.linalg.vector_norm(value - received[key])
        for key, value in own.items()
        if key.startswith(ENCODER) and value.ndim > 1 and value.is_floating_point()
    ]
    return torch.stack(distances).mean() if distances else None
