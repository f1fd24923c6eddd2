"""Server-side calibration of LW-FedSSL @v3: after averaging, the server trains L_1 .. L_s, H, P end to end.

It uses the clients' SSL loss on an auxiliary unlabelled set of its own. Size, epochs and learning rate are not
known to us; the defaults are our reading.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from fedbench.federation import Mechanism, ServerTraining


@dataclass(frozen=True)
class Calibration(Mechanism):
    """Taken out of the drawn partition: no client has a sample of it, and each keeps its other images."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the pre-training pool that the server takes, unless `data` names another set."""
    data: dict[str, Any] | None = None
    """Another data set for the server, as in the section `data`."""
    epochs: Annotated[int, Field(ge=0, le=100_000)] = 1
    """Epochs of the server's training in every round."""
    base_lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of the server at a batch of 256; null: the clients'."""

    def auxiliary(self) -> float | Mapping[str, Any] | None:
        """The named data set, or a share of the pool."""
        return self.data or self.share

    def server_step(self, server: ServerTraining) -> None:
        """Train everything that exists at this stage on the auxiliary set."""
        if self.epochs:
            server.train(self.epochs, self.base_lr)
