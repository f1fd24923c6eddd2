"""CoLA (arXiv:2502.10940): each linear layer of the blocks becomes B silu(A x), of low rank, from scratch."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedbench.encoders import Encoder, Transform
from fedbench.encoders.transform import check_order, linear_layers
from fedbench.errors import UserError


class LowRank(nn.Module):
    """B act(A x) + b in place of W x + b, (..., I) -> (..., O); A has r rows."""

    def __init__(self, layer: nn.Linear, rank: int, activation: str) -> None:
        super().__init__()
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
        for part in (self.down, self.up):
            nn.init.xavier_uniform_(part.weight)
        if self.up.bias is not None:
            nn.init.zeros_(self.up.bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """The low-rank layer."""
        hidden = self.down(x)
        return self.up(F.silu(hidden) if self.activation == "silu" else hidden)


@dataclass(frozen=True)
class CoLA(Transform):
    """A layer of I inputs and O outputs has r (I + O) weights and costs as many multiplications, instead of I O.

    The weights that the layer had are gone: A and B start anew, by Xavier's rule (the paper names its own only for
    language models). Averaging the clients' A and B is not averaging what the layers compute.
    """

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Rank r over the smaller of I and O, rounded up to a whole number; 0.25 in the paper."""
    activation: Literal["silu", "none"] = "silu"
    """Between A and B; none: a plain product of two matrices."""

    def apply(self, encoder: Encoder) -> None:
        """Replace the layers."""
        check_order(encoder, "cola")
        layers = linear_layers(encoder.blocks)
        if not layers:
            raise UserError("encoder.transforms: cola finds no linear layer in the blocks; allowed: a transformer")
        for parent, name, layer in layers:
            smaller = min(layer.in_features, layer.out_features)
            setattr(parent, name, LowRank(layer, max(1, round(self.ratio * smaller)), self.activation))
