"""FedCA (Zhang et al. 2020, arXiv:2010.08982): clients see each other's projections as further negatives.

Read: the abstract. The dictionary module is here; left out is the alignment module, which pulls representations of
public images towards those of a model trained on them (`alignment` pulls those of the client's own images towards
the received model's). Our reading: what is sent, and when; the form of the loss.

It leaks: projections of single images, and whose they are, go to the server and to every other client.

Shapes: B samples, D output dimensions, M rows of the dictionary.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedbench.config import Config
from fedbench.errors import UserError
from fedbench.federation import LocalStep, LocalVisit, Mechanism, ServerState, Specs, TensorSpec
from fedbench.ssl import load_ssl

from ..ssl.simclr import SimCLR


@dataclass(frozen=True)
class FedCA(Mechanism):
    """NT-Xent with the other clients' rows of the last round among the negatives of every projection.

    mean_i -log( exp(z_i.z_p / T) / (sum_{j != i} exp(z_i.z_j / T) + sum_d exp(z_i.y_d / T)) ), y of length one and
    without gradient: what the dictionary adds to SimCLR's loss is mean_i log(1 + E_d / E_j), E_d and E_j the two
    sums. Their own loss is SimCLR's too; other methods have no sum to which negatives could be added exactly.

    Up go `rows` x D projections of a view each, by the trained model in eval mode. Down, a round later, go those
    of all that returned, in a slot for each of `federation.participants`, and for each slot the number of its
    client; what nobody filled is zeros. The sum E_j is computed a second time, beside SimCLR's own.
    """

    needs: ClassVar = {"ssl": {"name": "simclr"}}

    rows: Annotated[int, Field(ge=0, le=100_000)] = 64
    """Projections that a client sends; of fewer images, some of them several times. 0: no dictionary."""

    def check(self, config: Config) -> None:
        """The loss is NT-Xent over the projections."""
        if not issubclass(load_ssl(config.ssl)[0], SimCLR):
            raise UserError(
                f"strategy.fedca: ssl.name={config.ssl.name} has no NT-Xent loss over its projections, to which "
                "negatives could be added; allowed: simclr"
            )

    def messages(self, trained: Specs, config: Config) -> Specs:
        """Rows up; the dictionary, and whose its slots are, down."""
        if not self.rows:
            return {}
        slots = config.federation.participants or config.federation.num_clients
        shape = (self.rows, config.ssl.output_dim)
        return {
            "projections": TensorSpec(shape, torch.float32, False, "upload"),
            "dictionary": TensorSpec((slots, *shape), torch.float32, False, "download"),
            "owners": TensorSpec((slots,), torch.int64, False, "download"),
        }

    def begin_visit(self, visit: LocalVisit) -> None:
        """The dictionary, and which of it are others' rows."""
        if not self.rows:
            return
        assert isinstance(visit.method, SimCLR)
        owners = visit.messages["owners"].repeat_interleave(self.rows)
        visit.provide(
            {
                "dictionary": visit.messages["dictionary"].flatten(0, 1),
                "is_others": (owners > 0) & (owners != visit.client + 1),
                "temperature": torch.full((), visit.method.temperature, device=owners.device),
            }
        )

    def local_loss(self, step: LocalStep) -> Tensor | None:
        """What the dictionary adds; 0, and no gradient, while nobody has sent anything."""
        if not self.rows:
            return None
        z_2BD = F.normalize(torch.cat(step.output["projections"]).float(), dim=1)
        itself = torch.eye(len(z_2BD), dtype=torch.bool, device=z_2BD.device)
        has = step.provided
        own = excluded(z_2BD @ z_2BD.T / has["temperature"], itself)
        others = excluded(z_2BD @ has["dictionary"].T / has["temperature"], ~has["is_others"])
        return F.softplus(others.logsumexp(dim=1) - own.logsumexp(dim=1)).mean()

    def end_visit(self, visit: LocalVisit) -> None:
        """Rows of length one."""
        if self.rows:
            z_BD = visit.project(visit.draw(self.rows)).float()
            visit.send({"projections": F.normalize(z_BD, dim=1)})

    def after_messages(self, arrived: dict[str, Tensor], server: ServerState) -> dict[str, Tensor]:
        """The round's rows and no older ones, in the order of their clients; an owner is its number + 1."""
        new = {name: torch.zeros_like(value) for name, value in server.messages.items()}
        slots = len(new["owners"])  # a strategy that chooses its clients may have chosen more
        sent = arrived["projections"][:slots]
        new["dictionary"][: len(sent)] = sent
        new["owners"][: len(sent)] = torch.tensor(server.clients[:slots]) + 1
        return new


def excluded(similarity: Tensor, where: Tensor) -> Tensor:
    """With what a sum of exponentials is to leave out; finite, so that a sum of nothing has a gradient of 0."""
    return similarity.masked_fill(where, torch.finfo(similarity.dtype).min)
