"""Federation: plans, strategies, payloads, the client's local training, the server, and the loop over rounds."""

from fedbench.federation.plan import StagePlan
from fedbench.federation.strategy import (
    ClientUpdate,
    GrowingStrategy,
    LocalStep,
    Strategy,
    load_strategy,
    weighted_mean,
)

__all__ = [
    "ClientUpdate",
    "GrowingStrategy",
    "LocalStep",
    "StagePlan",
    "Strategy",
    "load_strategy",
    "weighted_mean",
]
