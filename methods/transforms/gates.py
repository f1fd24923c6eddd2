"""Channel gates of dense + gated SSL (arXiv:2301.09164): for each sample, which channels of a block are computed.

Shapes: B samples, T tokens, D dimensions, H channels, the hidden ones of a block's MLP.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from fedbench.encoders import Encoder, Transform
from fedbench.encoders.tensor_groups import StateDict
from fedbench.encoders.transform import Transparent, check_order
from fedbench.encoders.ways import Ways
from fedbench.errors import UserError

GATED, DENSE = "gated", "dense"
BEGIN = 1.0  # bias of a gate: nearly all are open at the start


class Gating(Ways):
    """The way that blocks take; they note the density of each sample (B,): its share of open gates."""

    def __init__(self, names: Sequence[str], density: float, budget: float) -> None:
        super().__init__(*names)
        self.density, self.budget = density, budget

    def losses(self, noted: Sequence[Tensor]) -> list[Tensor]:
        """budget * (d_l - t_d)^2 for each gated block l under training."""
        trained = [density_B for density_B in noted if density_B.requires_grad]
        return [self.budget * (density_B.mean() - self.density).square() for density_B in trained]

    def figures(self, noted: Sequence[Tensor]) -> dict[str, float]:
        """`density`: mean share of open gates; 1 on the dense way."""
        return {"density": torch.cat(list(noted)).mean().item() if noted else 1.0}


class Gate(nn.Module):
    """From the mean of a sample's tokens, which of H channels are open: (B, T, D) -> (B, 1, H) of 0 and 1."""

    def __init__(self, dim: int, channels: int, temperature: float, ways: Ways) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, dim))
        self.bias = nn.Parameter(torch.full((channels,), BEGIN))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.temperature, self.ways = temperature, ways

    def forward(self, x_BTD: Tensor) -> Tensor:
        """With the noise of the Gumbel sigmoid in training; what is noted is without it, as at inference."""
        logits_BH = F.linear(x_BTD.mean(dim=1), self.weight, self.bias)
        self.ways.note(self.opened(logits_BH).mean(dim=1))
        if self.training:
            noise_BH = torch.rand_like(logits_BH).clamp(1e-6, 1 - 1e-6)
            logits_BH = logits_BH + noise_BH.log() - (-noise_BH).log1p()
        return self.opened(logits_BH).unsqueeze(1)

    def opened(self, logits_BH: Tensor) -> Tensor:
        """1 where a logit is above 0, else 0; the gradient is that of sigmoid(logit / temperature)."""
        soft_BH = torch.sigmoid(logits_BH / self.temperature)
        return (logits_BH > 0).to(soft_BH.dtype) + (soft_BH - soft_BH.detach())


class GatedMLP(Transparent):
    """An MLP whose hidden channels are multiplied by gates on the gated way."""

    inside = "module"

    def __init__(self, mlp: nn.Module, gate: Gate, ways: Ways) -> None:
        super().__init__()
        self.module, self.gate, self.ways = mlp, gate, ways

    def forward(self, x_BTD: Tensor) -> Tensor:
        """As the MLP, with some of its channels."""
        if self.ways.taken != GATED:
            return self.module(x_BTD)
        mlp = self.module
        hidden_BTH = mlp.drop1(mlp.act(mlp.fc1(x_BTD))) * self.gate(x_BTD)  # type: ignore[operator]
        return mlp.drop2(mlp.fc2(mlp.norm(hidden_BTH)))  # type: ignore[operator]


class TwoNorms(nn.Module):
    """A norm for each way; they begin alike."""

    def __init__(self, norm: nn.Module, ways: Ways) -> None:
        super().__init__()
        self.dense, self.gated, self.ways = norm, copy.deepcopy(norm), ways

    def forward(self, x: Tensor) -> Tensor:
        """The norm of the way that is taken."""
        return self.gated(x) if self.ways.taken == GATED else self.dense(x)


@dataclass(frozen=True)
class Gates(Transform):
    """Of a transformer's MLPs the hidden channels are gated, whose matrices are two thirds of a block.

    The budget term is in the loss of every SSL method. Training computes all channels and multiplies by zeros, so
    it costs more than without gates, not less. What inference would spare is told by the density on test images,
    for which gates may open otherwise than for views.

    Read: the abstract, and a description of gates, norms, views and budget. Ours: gates of an MLP's channels, in
    place of a residual network's; a budget for each block, because one that is trained alone has no other, and on
    gates without noise, so that what is pulled is what is measured.
    """

    called: ClassVar[str] = "gates"
    density: Annotated[float, Field(gt=0, le=1)] = 0.5
    """t_d: share of the gates that are to be open, of each block."""
    budget: NonNegativeFloat = 10.0
    """Weight of the term (d - t_d)^2 of a block's density d."""
    temperature: PositiveFloat = 1.0
    """Of the sigmoid, whose gradient stands for that of a gate."""
    dense: bool = False
    """Whether there is a dense way too, with norms of its own; the SSL method says which view takes it."""
    judged: Literal["gated", "dense"] = "gated"
    """The way of evaluation, where there are both, and of frozen models that a loss term asks for."""

    def apply(self, encoder: Encoder) -> None:
        """Put gates into the MLPs and, if there is a dense way, a second one beside each norm."""
        check_order(encoder, "gates")
        if self.judged == DENSE and not self.dense:
            raise UserError(
                f"encoder.transforms: {self.called} with judged=dense has no dense way; allowed: with dense=true"
            )
        mlps: list[Any] = [getattr(block, "mlp", None) for block in encoder.blocks]
        if not all(isinstance(getattr(mlp, "fc1", None), nn.Linear) for mlp in mlps):
            raise UserError(
                f"encoder.transforms: {self.called} finds blocks without an MLP of linear layers; allowed: a "
                "transformer, with gates in front of what replaces its layers"
            )
        if len(encoder.ways.names) > 1 or any(isinstance(mlp, GatedMLP) for mlp in mlps):
            raise UserError("encoder.transforms: gates twice; allowed: once")
        names = dict.fromkeys((self.judged, GATED, DENSE)) if self.dense else (GATED,)
        encoder.ways = ways = Gating(tuple(names), self.density, self.budget)
        if self.dense:
            _double_norms(encoder, ways)
        for block, mlp in zip(encoder.blocks, mlps, strict=True):
            gate = Gate(mlp.fc1.in_features, mlp.fc1.out_features, self.temperature, ways)
            block.mlp = GatedMLP(mlp, gate, ways)

    def merge(self, state: Mapping[str, Tensor]) -> StateDict | None:
        """The dense way is an encoder without gates, if it is the one that is judged."""
        if not (self.dense and self.judged == DENSE):
            return None
        words = {key: key.split(".") for key in state}
        return {
            ".".join(word for word in parts if word not in ("module", DENSE)): state[key]
            for key, parts in words.items()
            if not {"gate", GATED} & set(parts)
        }


def _double_norms(encoder: Encoder, ways: Ways) -> None:
    """Every norm of the blocks, and the last one."""
    for module in list(encoder.blocks.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.LayerNorm):
                setattr(module, name, TwoNorms(child, ways))
    encoder.norm = TwoNorms(encoder.norm, ways)
