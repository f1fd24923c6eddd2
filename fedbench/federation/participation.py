"""Who takes part in a round, and who is lost on the way; every draw has its own stream."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fedbench.config.schema import Config
from fedbench.errors import UserError
from fedbench.random import generator


@dataclass(frozen=True)
class Participation:
    """A round's clients in order. `lost_before` are sent nothing, `lost_after` train and send nothing back."""

    drawn: tuple[int, ...]
    lost_before: frozenset[int]
    lost_after: frozenset[int]


def num_drawn(config: Config, round_index: int) -> tuple[int, int]:
    """How many clients are drawn in a round, unless the strategy chooses them, and of how many that are there."""
    federation = config.federation
    late = federation.late_clients if round_index < federation.late_round else 0
    there = federation.num_clients - late
    return min(federation.participants or there, there), there


Choose = Callable[[int, int], Sequence[int] | None]  # `Strategy.clients`


def participation(config: Config, round_index: int, choose: Choose = lambda *_: None) -> Participation:
    """Of the clients that are there yet those whom the strategy chooses; else all, or `participants` of them drawn
    uniformly. Each is lost by chance.

    Raises:
        UserError: the strategy chose a client that is not there, or one twice.
    """
    federation = config.federation
    count, there = num_drawn(config, round_index)
    draw = generator(config.seed, "participants", round_index)
    chosen = choose(round_index, there)
    if chosen is not None and not (set(chosen) <= set(range(there)) and len(set(chosen)) == len(chosen)):
        raise UserError(
            f"round {round_index}: the strategy chose clients {list(chosen)}; "
            f"allowed: distinct ones from 0 to {there - 1}"
        )
    drawn = tuple(sorted(torch.randperm(there, generator=draw)[:count].tolist()) if chosen is None else chosen)
    chance = torch.rand(2, federation.num_clients, generator=generator(config.seed, "dropout", round_index))
    before = frozenset(client for client in drawn if chance[0, client] < federation.dropout_before)
    after = frozenset(client for client in drawn if chance[1, client] < federation.dropout_after)
    return Participation(drawn, before, after - before)
