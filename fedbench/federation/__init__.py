"""Federation: plans, strategies, payloads, the client's local training, the server, and the loop over rounds."""

from fedbench.encoders.tensor_groups import Specs, TensorSpec
from fedbench.federation.aggregation import ServerState
from fedbench.federation.codec import Codec, Direction, PersonalCodec, Way
from fedbench.federation.mechanism import Mechanism
from fedbench.federation.plan import StagePlan
from fedbench.federation.server_training import ServerTraining
from fedbench.federation.strategy import (
    ClientUpdate,
    GrowingStrategy,
    Strategy,
    load_mechanisms,
    load_strategy,
    weighted_mean,
)
from fedbench.federation.turn import Turn
from fedbench.training.local import LocalStep
from fedbench.training.visit import LocalVisit

__all__ = [
    "ClientUpdate",
    "Codec",
    "Direction",
    "GrowingStrategy",
    "LocalStep",
    "LocalVisit",
    "Mechanism",
    "PersonalCodec",
    "ServerState",
    "ServerTraining",
    "Specs",
    "StagePlan",
    "Strategy",
    "TensorSpec",
    "Turn",
    "Way",
    "load_mechanisms",
    "load_strategy",
    "weighted_mean",
]
