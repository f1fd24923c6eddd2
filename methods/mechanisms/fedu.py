"""FedU (Zhuang et al. 2021, arXiv:2108.06492): clients keep their target branch, and sometimes their predictor.

Read: the abstract and a description of the public code, from which the threshold 0.4 and the measure of divergence
are. Under a strategy that trains a part of the encoder, the measure is over that part: ours.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from fedbench.config.schema import Config
from fedbench.errors import UserError
from fedbench.federation import LocalVisit, Mechanism
from fedbench.federation.diagnostics import divergence
from fedbench.training.model import build_model

PREDICTOR = "prediction_head."


@dataclass(frozen=True)
class FedU(Mechanism):
    """Divergence-aware predictor update: the server's predictor if ||W_own - W_global|| < mu, else its own.

    The encoder and the projection head are the server's, the target branch is the client's own. `mu=null` and
    `keep_target=false` leave nothing of it.
    """

    mu: Annotated[float, Field(ge=0)] | None = 0.4
    """Divergence from which on a client keeps its own predictor; null: it never does."""
    keep_target: bool = True
    """Whether the target branch goes on from the client's last visit; false: it is rebuilt at every visit."""

    def check(self, config: Config) -> None:
        """There is a predictor and a target branch to keep."""
        model = build_model(config, 1)
        keys = model.online_state()
        if not model.target_state() or not any(key.startswith(PREDICTOR) for key in keys):
            raise UserError(
                f"strategy.fedu: ssl.name={config.ssl.name} has no target branch or no prediction head; "
                "allowed: SSL methods with both, such as byol and moco_v3"
            )

    def begin_visit(self, visit: LocalVisit) -> None:
        """What the client has of its own takes the place of what was received."""
        own = visit.kept("own")
        predictor = {key: value for key, value in own.items() if key.startswith(PREDICTOR)}
        distance = divergence(own, visit.trained)
        if self.mu is not None and predictor and distance is not None:
            far, received = distance >= self.mu, visit.trained
            visit.start_from({key: torch.where(far, value, received[key]) for key, value in predictor.items()})
        if self.keep_target:
            visit.load_target(visit.kept("target"))

    def end_visit(self, visit: LocalVisit) -> None:
        """The model behind the last step, and its target branch."""
        visit.keep("own", visit.trained)
        if self.keep_target:
            visit.keep("target", visit.target)
