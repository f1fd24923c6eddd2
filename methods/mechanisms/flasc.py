"""FLASC (Kuo et al. 2024, arXiv:2406.05233; CELLM, arXiv:2407.20557): LoRA with sparse payloads.

A client is sent the entries of the adapters that are largest in magnitude, trains densely from them, and sends
back the largest of what it changed; the two densities are apart, and nothing makes up for what is lost. The given
weights are the encoder's (`encoder.init`); the transform `lora` adds the adapters. The paper's server uses Adam:
combine with `server_optimizer`. Read: the method in outline.

Ours: entries are chosen in each block's adapters, not over all of them at once, so that what a client holds of a
block follows from its version alone; heads travel whole; clients are in tiers by their number, in turn.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedbench.config import Config
from fedbench.encoders import load_transforms
from fedbench.encoders.tensor_groups import is_block
from fedbench.errors import UserError
from fedbench.federation import Way
from fedbench.federation.sparse import Density, Sparse


@dataclass(frozen=True)
class FLASC(Sparse):
    """bytes of a block's adapters = 4 k + min(4 k, ceil(n / 8)); densities 1: LoRA itself, to the bit."""

    download: Density = 0.25
    """Share of a block's adapter on the way down, by magnitude of its values."""
    upload: Density = 0.25
    """Share of a block's adapter on the way up, by magnitude of its change."""
    download_of: Literal["change", "values"] = "values"
    """What is chosen from on the way down."""
    tiers: tuple[Density, ...] = ()
    """Densities in both directions of clients 0, 1, ... and so on in turn, instead of `download` and `upload`."""

    def check(self, config: Config) -> None:
        """Adapters of weights that were given: on random ones LoRA learns nothing."""
        if not any(transform.keeps_weights for transform in load_transforms(config.encoder)):
            raise UserError("strategy.flasc without adapters; allowed: with encoder.transforms=[lora]")
        if config.encoder.init is None:
            raise UserError("strategy.flasc on random weights; allowed: with encoder.init, the weights to adapt")

    def density(self, way: Way) -> float:
        """Of the client's tier, where there are any."""
        return self.tiers[way.tier] if self.tiers else super().density(way)

    def covers(self, group: str) -> bool:
        """Blocks, of which nothing but adapters is trained."""
        return is_block(group)

    @property
    def num_tiers(self) -> int:
        """As many as densities were named."""
        return len(self.tiers) or 1

    def choose(self, row_N: Tensor, count: int, draw: torch.Generator) -> Tensor:
        """Where the largest are (k), of equal ones the first."""
        return row_N.abs().sort(descending=True, stable=True).indices[:count]
