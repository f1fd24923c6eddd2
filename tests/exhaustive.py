"""Cases that only `make test-all` or `make stress` runs: more of what another case of the same test shows."""

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest


def exhaustive(*values: Any) -> Any:
    """A case (the values of a `parametrize`) for `make test-all` alone."""
    return pytest.param(*values, marks=pytest.mark.exhaustive)


def stress(*values: Any) -> Any:
    """A case for `make stress` alone."""
    return pytest.param(*values, marks=pytest.mark.stress)


def crossed(firsts: Iterable[str], first: str, seconds: Iterable[str], second: str) -> list[Any]:
    """All pairs as cases: `make test` runs those with `first` or `second`, so that each name is run."""
    pairs = product(firsts, seconds)
    return [pair if pair[0] == first or pair[1] == second else exhaustive(*pair) for pair in pairs]


# Mechanisms by what they reach a run through: a loss and what clients keep, the server's training, its optimizer,
# plans, messages, payloads that lose something, and those of each client's own.
OF_EACH_KIND = ("moon", "calibration", "server_optimizer", "depth_dropout", "scaffold", "quantise", "fedspa")


def one_of_each_kind(mechanisms: Iterable[str]) -> list[Any]:
    """Mechanisms as cases: `make test` runs one that reaches a run through each hook."""
    return [name if name in OF_EACH_KIND else exhaustive(name) for name in mechanisms]


def all_but(kept: str, names: Iterable[str]) -> list[Any]:
    """The names as cases: `make test` runs `kept`, `make test-all` all of them."""
    return [name if name == kept else exhaustive(name) for name in names]
