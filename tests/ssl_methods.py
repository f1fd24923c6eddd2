"""Which SSL methods go with what."""

from collections.abc import Iterable
from typing import Any

from exhaustive import crossed, exhaustive

from fedbench.plugins import builtin_files, load_plugin
from fedbench.ssl import SSLMethod

OF_THE_PAPER = ("byol", "moco_v3", "simclr")

OF_A_KIND = {"clip", "dino", "mae", "moco_v2"}  # two towers, small crops, one view, a queue: others are like these

NEEDS_TOKENS = {"mae", "gated_vicreg"}  # encoders that are vision transformers
ONE_WIDTH = {"clip"}  # encoders whose blocks have one
NO_PROJECTIONS = {"mae"}  # of two views: without what aligns them
ALIGNING = {"lw_fedssl@v3", "alignment", "moon", "feddecorr", "fedu2"}  # strategies and mechanisms
TOGETHER = {  # mechanisms that go with some methods alone
    "fedu": {"byol", "moco_v3"},  # a target branch and a predictor
    "fedca": {"simclr"},
    "orchestra": {"rotation"},
}


def needed(ssl: str) -> dict[str, Any]:
    """Sections of a configuration without which a method cannot work."""
    transforms = [dict(one) for one in load_plugin("ssl", ssl, SSLMethod).needs]
    return {"encoder": {"transforms": transforms}} if transforms else {}


def fits(pair: tuple[str, str]) -> bool:
    """Whether a (strategy or mechanism, SSL method) can be run."""
    other, ssl = pair
    if other in ALIGNING:
        return ssl not in NO_PROJECTIONS
    return ssl in TOGETHER.get(other, {ssl})


def methods(without: set[str]) -> list[str]:
    """All but those."""
    return [name for name in builtin_files("ssl") if name not in without]


def pairs(others: Iterable[str], one: str) -> list[Any]:
    """(strategy, SSL method) as cases: all strategies with the paper's methods, the further methods with `one`."""
    further = filter(fits, [(one, name) for name in builtin_files("ssl") if name not in OF_THE_PAPER])
    cases = [pair if pair[1] in OF_A_KIND else exhaustive(*pair) for pair in further]
    return [*crossed(others, one, OF_THE_PAPER, "moco_v3"), *cases]
