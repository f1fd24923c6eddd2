"""Who takes part in a round, and who is lost on the way; every draw has its own stream."""

from dataclasses import dataclass

import torch

from fedbench.config.schema import Config
from fedbench.random import generator


@dataclass(frozen=True)
class Participation:
    """One round's clients, ascending. `lost_before` are sent nothing, `lost_after` train and send nothing back."""

    drawn: tuple[int, ...]
    lost_before: frozenset[int]
    lost_after: frozenset[int]


def participation(config: Config, round_index: int) -> Participation:
    """All clients that are there yet, or `participants` of them drawn uniformly; each is lost by chance."""
    federation = config.federation
    late = federation.late_clients if round_index < federation.late_round else 0
    there = federation.num_clients - late
    count = min(federation.participants or there, there)
    draw = generator(config.seed, "participants", round_index)
    drawn = tuple(sorted(torch.randperm(there, generator=draw)[:count].tolist()))
    chance = torch.rand(2, federation.num_clients, generator=generator(config.seed, "dropout", round_index))
    before = frozenset(client for client in drawn if chance[0, client] < federation.dropout_before)
    after = frozenset(client for client in drawn if chance[1, client] < federation.dropout_after)
    return Participation(drawn, before, after - before)
