"""FedU2's efficient unified aggregator (Liao et al. 2024, arXiv:2403.16398): no client is left behind by the mean.

Each client's change is an objective of its own; the weights are those of the convex combination that is shortest,
the multiple-gradient descent of Sener and Koltun (arXiv:1810.04650): none of the clients is moved away from.

Read: the abstract, and the authors' code, whose option `EUA` makes the changes one long, and finds the shortest
combination of them by steps of Frank and Wolfe. Our reading: the weights found are those of the changes
themselves, where the code moves the server by the combination of directions, however little clients moved. Ours:
pairwise steps (Lacoste-Julien and Jaggi, arXiv:1511.05932), because the code's go to and fro without an end; they
start from the clients' shares of the samples, so that with none of them it is the plain mean. Left out: the code's
sharpening of these shares. The regulariser of the paper is the mechanism `fedu2`.

The server holds the changes of all of a round's clients at once, in memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedbench.config.schema import Config
from fedbench.encoders.tensor_groups import StateDict
from fedbench.errors import UserError
from fedbench.federation import ClientUpdate, Mechanism, ServerState, Strategy, load_mechanisms, load_strategy

ENOUGH = 1e-9  # of the gap between two clients, which bounds how much shorter a combination could be
SAMPLES, CHANGE = "samples/", "change/"  # in the server's memory, within a round, by client


@dataclass(frozen=True)
class FedU2Aggregation(Mechanism):
    """M <- M + sum_k w_k D_k with w = argmin over w >= 0, sum w = 1 of || sum_k w_k D_k / ||D_k|| ||^2.

    D_k: the change of client k in all parameters that it sent. Buffers, and clients that did not move, are left to
    the mean. With `iterations=0` it is the strategy itself, to the bit.
    """

    iterations: Annotated[int, Field(ge=0, le=100_000)] = 250
    """Steps at most; 250 in the authors' code."""

    def check(self, config: Config) -> None:
        """All clients send the same entries, and the changes are theirs."""
        for fault in _faults(self, config) if self.iterations else ():
            raise UserError(f"strategy.fedu2_aggregation with {fault}")

    def receive(self, update: ClientUpdate, server: ServerState) -> ClientUpdate:
        """Remember the change, as one row."""
        if self.iterations:
            keys = sorted(server.parameters & update.state.keys())
            change = [(update.state[key].double() - server.values[key].double()).flatten() for key in keys]
            server.memory[f"{CHANGE}{update.client}"] = torch.cat(change)
            server.memory[f"{SAMPLES}{update.client}"] = torch.tensor(float(update.num_samples)).double()
        return update

    def after_aggregate(self, values: StateDict, server: ServerState) -> StateDict:
        """The combination, where some client moved."""
        changes = _taken(server.memory, CHANGE)
        samples = _taken(server.memory, SAMPLES)
        moved = [number for number, change in enumerate(changes) if change.any()]
        if not moved:
            return values
        changes_KN = torch.stack([changes[number] for number in moved])
        unit_KN = changes_KN / changes_KN.norm(dim=1, keepdim=True)
        shares_K = torch.stack([samples[number] for number in moved])
        weights_K = shortest(unit_KN @ unit_KN.T, shares_K / shares_K.sum(), self.iterations)
        keys = sorted(server.parameters & values.keys())
        parts = (weights_K @ changes_KN).split([values[key].numel() for key in keys])
        return values | {
            key: (server.values[key].double() + part.reshape(values[key].shape)).to(values[key].dtype)
            for key, part in zip(keys, parts, strict=True)
        }


def shortest(products_KK: Tensor, start_K: Tensor, iterations: int) -> Tensor:
    """argmin over the simplex of w^T G w, from `start_K`, by at most so many steps.

    Each takes weight from the client that lengthens it most, for the one that shortens it most, as far as helps.
    """
    weights_K = start_K.clone()
    for _ in range(iterations):
        slopes_K = products_KK @ weights_K
        to, away = slopes_K.argmin(), slopes_K.masked_fill(weights_K == 0, -torch.inf).argmax()
        gap = slopes_K[away] - slopes_K[to]
        if gap <= ENOUGH:
            break
        curve = products_KK[to, to] - 2 * products_KK[to, away] + products_KK[away, away]
        step = torch.minimum(gap / curve, weights_K[away])
        weights_K[to] += step
        weights_K[away] -= step
    return weights_K


def _taken(memory: StateDict, kind: str) -> list[Tensor]:
    """What was remembered of each client, in the order of their numbers; it is forgotten."""
    names = sorted(
        (name for name in memory if name.startswith(kind)), key=lambda name: int(name.removeprefix(kind))
    )
    return [memory.pop(name) for name in names]


def _faults(mechanism: FedU2Aggregation, config: Config) -> Iterator[str]:
    strategy, mechanisms = load_strategy(config.strategy), load_mechanisms(config.strategy)
    own, name = mechanisms.index(mechanism), f"strategy={config.strategy['name']}"
    if type(strategy).aggregate is not Strategy.aggregate:
        yield f"{name}, which aggregates by a rule of its own; allowed: the mean, which it stands for"
    if type(strategy).visit_plan is not Strategy.visit_plan:
        yield f"{name}, whose clients send unlike entries; allowed: one plan for all"
    for place, one in enumerate(mechanisms):
        other = type(one)
        if other.visit_plan is not Mechanism.visit_plan:
            yield f"{other.__name__}, whose clients send unlike entries; allowed: one plan for all"
        if place != own and other.receive is not Mechanism.receive:
            yield f"{other.__name__}, which changes updates for the mean; allowed: one of them"
        if place < own and other.after_aggregate is not Mechanism.after_aggregate:
            yield f"{other.__name__}, whose aggregate it would replace; allowed: a name that comes later"
