"""FedAdam, FedYogi (Reddi et al. 2021, arXiv:2003.00295, Alg. 2), FedAvgM (Hsu et al. 2019, arXiv:1909.06335).

The server takes the aggregate's difference to its own model for a gradient. Buffers are averaged. A tensor that is
not sent in a round keeps its value and its moments; one of a new shape begins anew.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedbench.federation import Mechanism, ServerState


@dataclass(frozen=True)
class ServerOptimizer(Mechanism):
    """With D = aggregate - x: x <- x + lr m / (sqrt(v) + tau), without correction of the moments' bias.

    adam: m <- beta1 m + (1 - beta1) D, v <- beta2 v + (1 - beta2) D^2. yogi: the same m, and
    v <- v - (1 - beta2) D^2 sign(v - D^2). avgm: m <- beta1 m + D, x <- x + lr m; with lr = 1 and beta1 = 0
    that is plain averaging, to the bit.
    """

    rule: Literal["adam", "yogi", "avgm"] = "adam"
    """Which of the three."""
    lr: Annotated[float, Field(gt=0)] = 0.01
    """The server's rate; ours, to be tuned."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment, or FedAvgM's momentum."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the second moment."""
    tau: Annotated[float, Field(gt=0)] = 1.0e-3
    """Degree of adaptivity; v begins at tau^2."""

    def after_aggregate(self, values: dict[str, Tensor], server: ServerState) -> dict[str, Tensor]:
        """The server's step, for parameters."""
        return {key: self._step(key, v, server) if key in server.parameters else v for key, v in values.items()}

    def _step(self, key: str, aggregate: Tensor, server: ServerState) -> Tensor:
        x = server.values[key].double()
        difference = aggregate.double() - x  # of two float32: exact
        m, v = (self._moment(name, key, aggregate, server) for name in ("m", "v"))
        if self.rule == "avgm":
            m = self.beta1 * m + difference
            step = self.lr * m
        else:
            square = difference.square()
            m = self.beta1 * m + (1 - self.beta1) * difference
            v = v + (1 - self.beta2) * (square - v if self.rule == "adam" else -square * torch.sign(v - square))
            step = self.lr * m / (v.sqrt() + self.tau)
            server.memory[f"v.{key}"] = v.float()
        server.memory[f"m.{key}"] = m.float()
        return (x + step).to(aggregate.dtype)

    def _moment(self, name: str, key: str, like: Tensor, server: ServerState) -> Tensor:
        known = server.memory.get(f"{name}.{key}")
        if known is not None and known.shape == like.shape:
            return known.double()
        return torch.full_like(like, 0.0 if name == "m" else self.tau**2, dtype=torch.float64)
