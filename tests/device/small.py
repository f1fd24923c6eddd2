"""The small federation of these tests, and what is noted of it. Importing this registers the stand-in.

Where torch has an accelerator of its own there is no stand-in, for torch knows one at a time: what needs nothing
counted runs on that one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from fedbench.federation.federation import Federation
from fedbench.federation.record import RoundRecord

REAL = torch.accelerator.is_available()
if not REAL:
    import stand_in  # noqa: F401  before any backward pass of this process

SMALL = {
    "encoder": {"depth": 2, "width": 8},
    "ssl": {"hidden_dim": 8, "output_dim": 8},
    "data": {"num_train": 20},
    "federation": {"num_clients": 2, "rounds": 2},
    "optimizer": {"batch_size": 4},
    "accelerator": "auto",
}


@dataclass
class Trained:
    """A federation that was run: its records, its final values, and what crossed over in each local training."""

    federation: Federation
    records: list[RoundRecord] = field(default_factory=list)
    crossed: list["Crossed"] = field(default_factory=list)

    @property
    def values(self) -> Mapping[str, torch.Tensor]:
        """The server's, at the end."""
        return self.federation.server.state


@dataclass
class Crossed:
    """Between host and device: waits in a whole local training; copies to the device from its second step on."""

    waits: int
    copies: int
