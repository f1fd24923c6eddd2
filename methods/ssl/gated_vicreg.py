"""Dense + gated SSL (arXiv:2301.09164): view 1 through some channels, view 2 through all, VICReg between."""

from typing import ClassVar

from torch import Tensor

from fedbench.encoders import Encoder
from fedbench.errors import UserError
from fedbench.ssl import StepOutput

from .vicreg import VICReg, VICRegConfig, vicreg


class GatedVICReg(VICReg):
    """One encoder learns to do with all of its channels, and with the share that its gates open.

    `encoder.transforms` has the gates (`gates` with `dense=true`), and their budget term. Both ways have one
    projection head: ours. Left out: clients of little capacity that go the gated way alone.
    """

    chooses_way = True
    needs: ClassVar = ({"name": "gates", "dense": True},)

    def __init__(self, encoder: Encoder, config: VICRegConfig) -> None:
        if set(encoder.ways.names) != {"gated", "dense"}:
            raise UserError(
                "ssl=gated_vicreg takes a gated and a dense way through the encoder, which has not both; allowed: "
                "with encoder.transforms=[{name: gates, dense: true}]"
            )
        super().__init__(encoder, config)

    def training_step(self, views: tuple[Tensor, Tensor], batch_idx: int = 0) -> StepOutput:
        """At least 0."""
        with self.encoder.ways.take("gated"):
            z1 = self.project(views[0])
        with self.encoder.ways.take("dense"):
            z2 = self.project(views[1])
        return {"loss": vicreg(z1, z2, self.config), "projections": (z1, z2)}
