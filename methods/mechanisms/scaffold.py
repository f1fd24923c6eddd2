"""SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378, Algorithm 1, option II): variates against client drift.

The server has a variate c, each client n its own c_n. A local step follows g - c_n + c instead of the gradient g;
behind the last one c_n becomes c_n - c + (x - y) / (K lr), where x was received, y is what K steps made of it; the
change of c_n is sent, and c moves by the mean of the changes times the share of clients that returned. c travels
down and the changes up, each as large as what is trained: traffic doubles.

Ours: c_n lies on the client's disk; a client that is lost after training has it changed though the server does not
know. As a term <c - c_n, w> of the loss the correction is that of plain SGD, so other optimizers are refused.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedbench.config import Config
from fedbench.errors import UserError
from fedbench.federation import LocalStep, LocalVisit, Mechanism, ServerState, Specs


@dataclass(frozen=True)
class Scaffold(Mechanism):
    """While all variates are zero, as in the first round, it is the strategy itself."""

    needs: ClassVar = {"optimizer": {"name": "sgd", "momentum": 0.0}}

    def check(self, config: Config) -> None:
        """Plain SGD."""
        optimizer = config.optimizer
        if optimizer.name != "sgd" or optimizer.momentum:
            raise UserError(
                f"strategy.scaffold with optimizer.name={optimizer.name}, momentum={optimizer.momentum}; allowed: "
                "optimizer.name=sgd optimizer.momentum=0"
            )

    def messages(self, trained: Specs, config: Config) -> Specs:
        """A variate for each parameter under training."""
        return trained

    def begin_visit(self, visit: LocalVisit) -> None:
        """c - c_n, for the loss."""
        own = visit.kept("variates")
        visit.provide({key: c - own[key] if key in own else c for key, c in visit.messages.items()})

    def local_loss(self, step: LocalStep) -> Tensor | None:
        """<c - c_n, w>, whose gradient is the correction."""
        terms = [(step.provided[key] * w).sum() for key, w in step.trained.items() if key in step.provided]
        return torch.stack(terms).sum() if terms else None

    def end_visit(self, visit: LocalVisit) -> None:
        """Option II, and what it changed."""
        own, received, length = visit.kept("variates"), visit.received, visit.num_steps * visit.lr
        before = {key: own.get(key, torch.zeros_like(c)) for key, c in visit.messages.items()}
        after = {
            key: before[key] - c + (received[key] - visit.trained[key]) / length
            for key, c in visit.messages.items()
            if key in visit.trained
        }
        visit.keep("variates", after)
        visit.send({key: value - before[key] for key, value in after.items()})

    def after_messages(self, arrived: dict[str, Tensor], server: ServerState) -> dict[str, Tensor]:
        """c <- c + 1/N sum_n of the changes: |S| / N times their mean."""
        return {key: c + arrived[key] / server.num_clients for key, c in server.messages.items()}
