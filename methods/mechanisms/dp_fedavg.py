"""DP-FedAvg (McMahan et al. 2018, arXiv:1710.06963): clients' changes are clipped, their sum gets Gaussian noise.

Client-level: it bounds what all models that the server ever sends out tell of a client, to those who know neither
seed nor who was drawn. Read: the paper in outline; its fixed denominator and flat clipping. Each client has one
weight: one of many samples could move the mean further than the noise hides. A growing encoder sends other
parameters in each stage; C bounds all that is sent in a visit. Ours:

- The denominator m is the number of clients drawn. The paper draws each by itself (Poisson), fedbench a fixed
  number without replacement: where a client is missing another is drawn in its place. Given the others that are
  drawn, the sum is the same or, at the rate m / registered, one up to 2 C away; so, by convexity, the bound of
  Poisson sampling holds for a sensitivity of 2 C. The accountant is told half the noise.
- Where all are drawn nothing is amplified. There a client is compared with one that takes part and does not move.
- A client that is lost or rejected, or does not send a block, counts as one that did not move. Only a round from
  which no update at all is used has no noise: the model stays, and says so.
- Buffers cannot be clipped: the server keeps its own, and encoders with running statistics are refused.
- Spent is what Opacus' RDP accountant says, for each round as if nobody had been lost in it.
- Images of the server (calibration) are not the clients', and not protected, also where they came from the pool.
"""

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedbench.config.schema import Config
from fedbench.encoders.tensor_groups import HEADS, StateDict, group_of
from fedbench.errors import UserError
from fedbench.federation import ClientUpdate, Mechanism, ServerState, Strategy, load_mechanisms, load_strategy
from fedbench.federation.participation import num_drawn
from fedbench.random import generator

ORDERS = (*np.arange(1.01, 1.1, 0.01), *np.arange(1.1, 11, 0.1), *range(11, 64), 128, 256, 512)
LEAST_NOISE = 1e-3  # below it no accountant says anything
SENT = "sent/"  # in the server's memory, within a round: by key, how many sent it


@dataclass(frozen=True)
class DPFedAvg(Mechanism):
    """x <- x + 1/m (sum_k D_k min(1, C / ||D_k||) + N(0, (z C)^2)), D_k: client k's parameters minus the server's.

    Without clip and noise, and with clients of one size that all return, it is the strategy itself, to the bit,
    but for the buffers of the heads.
    """

    clip: Annotated[float, Field(gt=0)] | None = 0.1
    """C, the largest L2 norm of a client's change over all parameters that it sends; null: any."""
    noise: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """z, standard deviation of the noise of the sum, in units of C."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1.0e-5
    """Probability with which `privacy/epsilon` need not hold."""

    def check(self, config: Config) -> None:
        """Refuse that with which the bound on what a client can change, or what is said of it, would not hold."""
        for fault in (*self._own_faults(config), *_others_faults(self, config)):
            raise UserError(f"strategy.dp_fedavg: {fault}")

    def _own_faults(self, config: Config) -> Iterator[str]:
        if self.noise and self.clip is None:
            yield f"noise={self.noise} with clip=null, of which nothing follows; allowed: a clip, or noise=0"
        if 0 < self.noise < LEAST_NOISE:
            yield f"noise={self.noise}; allowed: 0, or at least {LEAST_NOISE}"
        if self.noise and self.delta >= 1 / config.federation.num_clients:
            yield (
                f"delta={self.delta} with {config.federation.num_clients} clients, one of whom it lets be told; "
                "allowed: below 1 / federation.num_clients"
            )

    def receive(self, update: ClientUpdate, server: ServerState) -> ClientUpdate:
        """The update with its change clipped, of weight 1."""
        _refuse_statistics(update.state, server)
        for key in update.state:
            server.memory[SENT + key] = server.memory.get(SENT + key, torch.zeros(())) + 1
        return replace(update, num_samples=1, state=self._clipped(update.state, server))

    def _clipped(self, state: StateDict, server: ServerState) -> StateDict:
        changes = {
            key: state[key].double() - server.values[key].double() for key in state if _is_released(key, server)
        }
        norm = math.sqrt(sum(change.square().sum().item() for change in changes.values()))
        if self.clip is None or norm <= self.clip:
            return state
        scale = self.clip / norm
        return state | {key: moved(server.values[key], scale * change) for key, change in changes.items()}

    def after_aggregate(self, values: StateDict, server: ServerState) -> StateDict:
        """The mean over all that were drawn, with noise; what is no parameter, or not trained, stays as it is."""
        sent = {key: server.memory.pop(SENT + key).item() for key in values}
        return {
            key: self._noised(key, value, sent[key] / server.num_drawn, server)
            if _is_released(key, server)
            else server.values[key]
            for key, value in values.items()
        }

    def _noised(self, key: str, mean: Tensor, share: float, server: ServerState) -> Tensor:
        """`mean`: of the `share` of the drawn clients that sent the entry."""
        value = share * mean.double() + (1 - share) * server.values[key].double()
        if self.noise and self.clip:
            draw = generator(server.seed, "dp_fedavg", server.round_index, key)
            std = self.noise * self.clip / server.num_drawn
            value += std * torch.randn(value.shape, generator=draw, dtype=torch.float64)
        return value.to(mean.dtype)

    def figures(self, config: Config, rounds: int) -> Mapping[str, float]:
        """Epsilon, infinite without noise, and the delta at which it holds."""
        draws = Counter(num_drawn(config, number) for number in range(rounds))
        return {"privacy/epsilon": epsilon(self.noise, draws, self.delta), "privacy/delta": self.delta}


def _is_released(key: str, server: ServerState) -> bool:
    return key in server.parameters and group_of(key) in server.plan.trained_groups


def moved(start: Tensor, change: Tensor) -> Tensor:
    """`start` plus `change` (float64), rounded towards `start`: no entry moves further than it should."""
    value = (start.double() + change).to(start.dtype)
    is_too_far = (value.double() - start.double()).abs() > change.abs()
    return torch.where(is_too_far, torch.nextafter(value, start), value)


def epsilon(noise: float, draws: Mapping[tuple[int, int], int], delta: float) -> float:
    """(Clients drawn, clients there) -> number of such rounds; what all of them together spend."""
    if not draws:
        return 0.0
    if not noise:
        return math.inf
    from opacus.accountants.analysis import rdp  # here: it takes a second

    spent = sum(times * _spent(noise, drawn, there) for (drawn, there), times in draws.items())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a bound of another order might be tighter; it is one
        found, _ = rdp.get_privacy_spent(orders=ORDERS, rdp=spent, delta=delta)
    return max(float(found), 0.0)


@cache
def _spent(noise: float, drawn: int, there: int) -> NDArray[np.float64]:
    """Renyi divergence of one round, by order; without replacement at half the noise, see above."""
    from opacus.accountants.analysis import rdp

    multiplier = noise if drawn == there else noise / 2
    return np.asarray(rdp.compute_rdp(q=drawn / there, noise_multiplier=multiplier, steps=1, orders=list(ORDERS)))


def _refuse_statistics(state: StateDict, server: ServerState) -> None:
    odd = [key for key in state if key not in server.parameters and group_of(key) != HEADS]
    if odd:
        raise UserError(
            f"dp_fedavg: {odd[0]!r} is a buffer of the encoder, which cannot be clipped; allowed: encoders "
            "without running statistics, such as vit"
        )


def _others_faults(mechanism: DPFedAvg, config: Config) -> Iterator[str]:
    """What of the strategy and the other mechanisms would break the bound."""
    strategy, mechanisms = load_strategy(config.strategy), load_mechanisms(config.strategy)
    own = mechanisms.index(mechanism)
    for hook, why in (("aggregate", "weighs updates"), ("clients", "chooses clients")):
        if getattr(type(strategy), hook) is not getattr(Strategy, hook):
            yield f"strategy={config.strategy['name']} {why} by a rule of its own; allowed: one that does not"
    for place, one in enumerate(mechanisms):
        if place != own and _has(one, "receive"):
            yield f"{type(one).__name__} changes updates too, and no clip would bound them; allowed: one of them"
        if _has(one, "messages"):
            yield f"{type(one).__name__} sends tensors that nobody clips; allowed: without"
        if place < own and _has(one, "after_aggregate"):
            yield f"{type(one).__name__} changes the aggregate before the noise; allowed: a name that comes later"
    narrows = [type(one).__name__ for one in mechanisms if _has(one, "visit_plan")]
    narrows += [config.strategy["name"]] if type(strategy).visit_plan is not Strategy.visit_plan else []
    drawn, there = num_drawn(config, config.federation.rounds)
    if narrows and drawn < there:
        yield (
            f"federation.participants={drawn} with {narrows[0]}: which blocks moved may tell "
            "who was drawn; allowed: all clients in every round (null)"
        )


def _has(mechanism: Mechanism, hook: str) -> bool:
    return getattr(type(mechanism), hook) is not getattr(Mechanism, hook)
