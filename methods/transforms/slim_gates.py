"""Channel gates (arXiv:2301.09164, see `gates`) of which a client of little capacity computes a fixed share.

Ours: the gates of `gates` multiply by zeros, which saves nothing. A visit that goes the gated way alone (the
mechanism `gated_tiers`) computes of each MLP only as many hidden channels as the budget asks for: those that the
gates open most readily for the batch, by the mean of their logits. In these each sample has its own gates; the
others are closed for all of it. So its products and what is kept of them for the backward pass really fall.
Whoever goes both ways trains as with `gates`, to the bit; so does evaluation compute all channels.

Shapes: B samples, T tokens, D dimensions, H channels of which K are computed.
"""

from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbench.encoders import Encoder
from fedbench.encoders.ways import Ways

from .gates import GATED, Gate, GatedMLP, Gates


class SlimMLP(GatedMLP):
    """A gated MLP that computes K channels where the gated way is the only one."""

    def __init__(self, mlp: nn.Module, gate: Gate, ways: Ways, width: int) -> None:
        """`width`: K."""
        super().__init__(mlp, gate, ways)
        self.width = width

    def forward(self, x_BTD: Tensor) -> Tensor:
        """As with all channels, or with some of them."""
        if self.ways.alone != GATED:
            return super().forward(x_BTD)
        mlp, gates_B1H = self.module, self.gate(x_BTD)
        with torch.no_grad():  # the mean of logits is the logit of the mean
            wanted_H = F.linear(x_BTD.mean(dim=(0, 1)), self.gate.weight, self.gate.bias)
            chosen_K = wanted_H.topk(self.width).indices
        hidden_BTK = F.linear(x_BTD, mlp.fc1.weight[chosen_K], mlp.fc1.bias[chosen_K])  # type: ignore[index, union-attr]
        hidden_BTK = mlp.drop1(mlp.act(hidden_BTK)) * gates_B1H[..., chosen_K]  # type: ignore[operator]
        return mlp.drop2(F.linear(hidden_BTK, mlp.fc2.weight[:, chosen_K], mlp.fc2.bias))  # type: ignore


@dataclass(frozen=True)
class SlimGates(Gates):
    """K = ceil(density H). The transform comes last: what replaces an MLP's layers would not know of K."""

    called: ClassVar[str] = "slim_gates"

    def apply(self, encoder: Encoder) -> None:
        """As `gates`, around MLPs that can do with fewer channels."""
        super().apply(encoder)
        for block in encoder.blocks:
            gated = block.mlp
            assert isinstance(gated, GatedMLP)
            width = ceil(self.density * len(gated.gate.bias))
            block.mlp = SlimMLP(gated.module, gated.gate, gated.ways, width)
