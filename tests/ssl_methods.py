"""Which SSL methods go with what."""

from fedbench.plugins import builtin_files

NEEDS_TOKENS = {"mae"}  # encoders that are vision transformers
NO_PROJECTIONS = {"mae"}  # of two views: without what aligns them
ALIGNING = {"lw_fedssl@v3", "alignment", "moon", "feddecorr"}  # strategies and mechanisms
TARGET_AND_PREDICTOR = {"byol", "moco_v3"}  # what FedU asks for


def fits(pair: tuple[str, str]) -> bool:
    """Whether a (strategy or mechanism, SSL method) can be run."""
    other, ssl = pair
    if other in ALIGNING:
        return ssl not in NO_PROJECTIONS
    return other != "fedu" or ssl in TARGET_AND_PREDICTOR


def methods(without: set[str]) -> list[str]:
    """All but those."""
    return [name for name in builtin_files("ssl") if name not in without]
