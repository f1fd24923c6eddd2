"""Mine: what it does in one line, and whose idea it is (arXiv number, equation)."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from fedbench.federation import LocalStep, Mechanism


@dataclass(frozen=True)
class Mine(Mechanism):
    """Any strategy can have it: `strategy={name: fedssl, ./mine.py: {weight: 0.5}}`.

    Other hooks than `local_loss`: `visit_plan` (a client runs or trains less), `server_step` with `auxiliary`
    (the server trains on images of its own), `end_stage` (it edits its model), `check` (refuse a configuration).
    """

    weight: Annotated[float, Field(ge=0)] = 0.1
    """Of the term that keeps the projections' dimensions apart."""

    def local_loss(self, step: LocalStep) -> Tensor | None:
        """A term added to the SSL loss, or None: weight / D^2 ||K||_F^2, K the correlation of projections."""
        if self.weight == 0:
            return None
        z_BD, _ = step.output["projections"]
        standard_BD = (z_BD - z_BD.mean(0)) / (z_BD.std(0) + 1e-6)
        correlation_DD = standard_BD.T @ standard_BD / len(z_BD)
        return self.weight * correlation_DD.square().mean()
