"""FedU2 (Liao et al. 2024, arXiv:2403.16398): clients spread their projections evenly over the sphere.

The flexible uniform regulariser alone. Left out: the efficient unified aggregator, which needs the updates of all
clients at once, where this server averages them as they arrive.

Shapes: B samples, D output dimensions.
"""

from dataclasses import dataclass
from math import log
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from fedbench.federation import LocalStep, Mechanism


@dataclass(frozen=True)
class FedU2(Mechanism):
    """weight * S(z, u), mean over the views: unbalanced optimal transport of projections to points of the sphere.

    u: as many points, drawn for each view from a Gaussian and made one long. S(z, u) = OT(z, u) - OT(z, z) / 2
    - OT(u, u) / 2 is 0 where the projections lie like the points. OT(x, y) = min over P >= 0 of <P, C>
    + rho KL(P 1, a) + rho KL(P^T 1, b) + epsilon KL(P, a b^T), with C = 1 - cosine and a = b = 1 / B.

    Read: abstract, and the authors' code in outline, from which are unbalanced transport to a spherical Gaussian
    and the weight. Our reading: the projections that an SSL method tells (there: features), and the form of OT and
    S, which is Sejourne et al.'s (arXiv:1910.12958). FLOPs have the products of C, and not the iterations.
    """

    weight: NonNegativeFloat = 0.01
    """Of the term; 0: none; 0.01 in the authors' code."""
    epsilon: PositiveFloat = 0.05
    """How soft the transport is."""
    rho: PositiveFloat = 1.0
    """Price of leaving mass where it is: it moves no further than about the root of 2 rho."""
    iterations: Annotated[PositiveInt, Field(le=1_000)] = 20
    """Of Sinkhorn's algorithm."""

    def local_loss(self, step: LocalStep) -> Tensor | None:
        """The term; None without weight, for its draws would move those of the SSL method."""
        if not self.weight:
            return None
        return self.weight * torch.stack([self.term(z) for z in step.output["projections"]]).mean()

    def term(self, z_BD: Tensor) -> Tensor:
        """S between the directions of z and as many drawn ones."""
        z_BD = F.normalize(z_BD.float(), dim=1)
        return self.divergence(z_BD, F.normalize(torch.randn_like(z_BD), dim=1))

    def divergence(self, x_BD: Tensor, y_BD: Tensor) -> Tensor:
        """S(x, y) of points of length one."""
        return self.transport(x_BD, y_BD) - (self.transport(x_BD, x_BD) + self.transport(y_BD, y_BD)) / 2

    def transport(self, x_BD: Tensor, y_BD: Tensor) -> Tensor:
        """OT(x, y) by its dual, whose gradient in C is the plan P as long as the potentials are held."""
        cost_BB = 1 - x_BD @ y_BD.T
        f_B, g_B = self.potentials(cost_BB.detach())
        plan_BB = ((f_B[:, None] + g_B - cost_BB) / self.epsilon).exp()
        kept = (1 - (-f_B / self.rho).exp()).mean() + (1 - (-g_B / self.rho).exp()).mean()
        return self.rho * kept + self.epsilon * (1 - plan_BB).mean()

    def potentials(self, cost_BB: Tensor) -> tuple[Tensor, Tensor]:
        """f_i <- -t log( mean_j exp((g_j - C_ij) / epsilon) ), t = epsilon rho / (epsilon + rho); g likewise."""
        damped = self.epsilon * self.rho / (self.epsilon + self.rho)
        size, g_B = log(len(cost_BB)), torch.zeros_like(cost_BB[0])
        for _ in range(self.iterations):
            f_B = -damped * (((g_B - cost_BB) / self.epsilon).logsumexp(dim=1) - size)
            g_B = -damped * (((f_B[:, None] - cost_BB) / self.epsilon).logsumexp(dim=0) - size)
        return f_B, g_B
