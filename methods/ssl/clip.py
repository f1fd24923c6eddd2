"""CLIP's loss (Radford et al. 2021, arXiv:2103.00020) between the two towers of an encoder, as in LW-FedMML."""

from typing import ClassVar

import torch
from torch import Tensor

from fedbench.config.schema import SSLConfig
from fedbench.encoders import Encoder
from fedbench.errors import UserError
from fedbench.losses import info_nce
from fedbench.ssl import SSLMethod, StepOutput


class CLIP(SSLMethod):
    """l(a, b) / 2 + l(b, a) / 2, a and b the towers' features of an image; one view, no projections of two.

    Departures: no linear projections (they would be thrown away with the heads, and with them the space in which
    retrieval searches), and the temperature is `ssl.temperature` (there: learned).
    """

    num_views = 1
    needs: ClassVar = ({"name": "two_towers"},)

    def __init__(self, encoder: Encoder, config: SSLConfig) -> None:
        super().__init__(encoder)
        if encoder.num_towers != 2:
            raise UserError(
                "ssl=clip compares two towers, and the encoder has one; allowed: with "
                "encoder.transforms=[two_towers]"
            )
        self.temperature = config.temperature

    def training_step(self, views: tuple[Tensor, ...], batch_idx: int = 0) -> StepOutput:
        """At least 0; log B where nothing is told apart."""
        first, second = self.encoder(views[0]).chunk(2, dim=1)
        ways = (info_nce(first, second, self.temperature), info_nce(second, first, self.temperature))
        return {"loss": torch.stack(ways).mean()}
