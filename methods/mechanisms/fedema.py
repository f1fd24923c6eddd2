"""FedEMA (Zhuang et al. 2022, arXiv:2204.04385): a client starts between its own model and the global one.

Read: the abstract and a description of the public code. The divergence is FedU's; as long as it is zero, lambda
stays open.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedbench.federation import LocalVisit, Mechanism
from fedbench.federation.diagnostics import divergence


@dataclass(frozen=True)
class FedEMA(Mechanism):
    """w <- mu w_own + (1 - mu) w_global, mu = min(lambda ||W_own - W_global||, 1), lambda = tau / first distance.

    Of encoder and heads under training, by each client for itself; the target branch is the client's own. With
    fewer participants than clients the own model is older than one round. `tau=0` starts from the global model.
    """

    tau: Annotated[float, Field(ge=0, le=1)] = 0.7
    """mu at the first divergence that a client measures; 0.7 in the paper."""

    def begin_visit(self, visit: LocalVisit) -> None:
        """Mix, and take the target branch up again."""
        own, received = visit.kept("own"), visit.trained
        distance = divergence(own, received)
        if distance is not None:
            scale = self.scale(visit.kept("scale").get("lambda"), distance)
            mu = (scale * distance).clamp(max=1)
            visit.start_from({key: mixed(received[key], value, mu) for key, value in own.items()})
            visit.keep("scale", {"lambda": scale})
        visit.load_target(visit.kept("target"))

    def scale(self, earlier: Tensor | None, distance: Tensor) -> Tensor:
        """Lambda: what it was, or tau / distance; 0 for a distance of 0."""
        first = torch.where(distance > 0, self.tau / distance, 0.0)
        return first if earlier is None else torch.where(earlier > 0, earlier, first)

    def end_visit(self, visit: LocalVisit) -> None:
        """The model behind the last step, and its target branch."""
        visit.keep("own", visit.trained)
        visit.keep("target", visit.target)


def mixed(received: Tensor, own: Tensor, mu: Tensor) -> Tensor:
    """mu own + (1 - mu) received; a counter is the received one."""
    return torch.lerp(received, own, mu.to(received.dtype)) if received.is_floating_point() else received
