"""CLIP's loss (Radford et al. 2021, arXiv:2103.00020) between the two towers of an encoder, as in LW-FedMML."""

from typing import ClassVar

import torch
from torch import Tensor

from fedbench.config.schema import SSLConfig
from fedbench.encoders import Encoder
from fedbench.errors import UserError
from fedbench.losses import info_nce
from fedbench.ssl import SSLMethod, StepOutput


class CLIPConfig(SSLConfig):
    """Of the pairs."""

    across_views: bool = False
    """Whether the towers compare the two random views of an image; false: each view with itself, as pairs are."""


class CLIP(SSLMethod):
    """Mean over both views of l(a, b) / 2 + l(b, a) / 2, a and b what the towers make of a view.

    Across views: of l(a_1, b_2), and so on, with equal towers the loss of one tower between two views. On the same
    view towers can agree by where it was cut out; they find it again, and their features may be worth little else.

    Departures: no linear projections (they would be thrown away with the heads, and with them the space in which
    retrieval searches); the temperature is `ssl.temperature` (there: learned).
    """

    needs: ClassVar = ({"name": "two_towers"},)

    def __init__(self, encoder: Encoder, config: CLIPConfig) -> None:
        super().__init__(encoder)
        if encoder.num_towers != 2:
            raise UserError(
                "ssl=clip compares two towers, and the encoder has one; allowed: with "
                "encoder.transforms=[two_towers]"
            )
        self.config = config

    def training_step(self, views: tuple[Tensor, Tensor], batch_idx: int = 0) -> StepOutput:
        """At least 0; log B where nothing is told apart."""
        z1, z2 = self.encoder(views[0]), self.encoder(views[1])
        (a1, b1), (a2, b2) = z1.chunk(2, dim=1), z2.chunk(2, dim=1)
        if self.config.across_views:
            b1, b2 = b2, b1
        pairs = ((a1, b1), (b1, a1), (a2, b2), (b2, a2))
        losses = [info_nce(query, key, self.config.temperature) for query, key in pairs]
        return {"loss": torch.stack(losses).mean(), "projections": (z1, z2)}
