"""Random streams keyed by what they are for, so that no result depends on scheduling.

A stream is named by (seed, purpose, round, client, ...): two uses never share one, and a client's draws are
the same whichever worker trains it, in whatever order, after a resume or not.
"""

import hashlib

import torch


def stream(seed: int, *key: str | int) -> int:
    """A 63-bit seed for the stream named by `seed` and `key`."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *key: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on `device` at the start of the stream named by `seed` and `key`."""
    return torch.Generator(device=device).manual_seed(stream(seed, *key))
