"""Orchestra (Lubana et al. 2022, arXiv:2205.11506): clients predict clusters that the server made of theirs.

A client clusters projections of its own images and sends the centroids; the server clusters those of all clients
into prototypes and sends them down; the loss asks of one view which prototype the target branch sees in the other.
The regulariser against degenerate clusters, predicting a rotation, is the base method's loss: `ssl=rotation`.

The paper was not read: that both ends cluster to equal sizes by Sinkhorn-Knopp, the target branch and the rotation
are what descriptions of it and of its code agree on. Our reading: k-means on the sphere with balanced assignments,
anew in every round; projections of drawn views by the trained model in eval mode; soft assignments in the loss.

It leaks less than projections would: centroids, means of some of a client's projections, go to the server alone.

Shapes: B samples, D output dimensions, K prototypes, N points of P that are clustered.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from fedbench.config import Config
from fedbench.errors import UserError
from fedbench.federation import LocalStep, LocalVisit, Mechanism, ServerState, Specs, TensorSpec
from fedbench.random import generator
from fedbench.ssl import load_ssl

from ..ssl.rotation import Rotation

SOFTNESS, SINKHORN = 0.05, 10  # of balanced assignments: their entropy, and the iterations that make them


@dataclass(frozen=True)
class Orchestra(Mechanism):
    """weight * mean over both directions of -sum_k p_k(target view) log p_k(other view), p = softmax(z.c_k / T).

    z of length one, c_k the prototypes. Up go `local_clusters` x D centroids, down `global_clusters` x D
    prototypes. While these are zero, as in the first round, it is the base method itself. What the server computes
    is in no figure. Where clients are lost and centroids are fewer than prototypes, some prototypes are alike.
    """

    needs: ClassVar = {"ssl": {"name": "rotation"}}

    weight: NonNegativeFloat = 1.0
    """Of the term; 0: none, and nothing is sent."""
    local_clusters: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Centroids that a client sends."""
    global_clusters: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Prototypes that the server sends; 128 for 100 clients in the paper."""
    rows: Annotated[int, Field(ge=1, le=100_000)] = 128
    """Projections that a client clusters; of fewer images, some of them several times."""
    temperature: PositiveFloat = 0.1
    """T."""
    iterations: Annotated[PositiveInt, Field(le=1_000)] = 10
    """Of k-means, at both ends."""

    def check(self, config: Config) -> None:
        """There is a target branch to predict, and there is enough to cluster."""
        if not issubclass(load_ssl(config.ssl)[0], Rotation):
            raise UserError(
                f"strategy.orchestra: ssl.name={config.ssl.name} tells no projections of a target branch; "
                "allowed: rotation"
            )
        if self.local_clusters > self.rows:
            raise UserError(
                f"strategy.orchestra.local_clusters={self.local_clusters} with rows={self.rows}; allowed: at most "
                f"{self.rows}"
            )
        clients = config.federation.participants or config.federation.num_clients
        if self.global_clusters > self.local_clusters * clients:
            raise UserError(
                f"strategy.orchestra.global_clusters={self.global_clusters} of {clients} clients' local_clusters="
                f"{self.local_clusters}; allowed: at most {self.local_clusters * clients}"
            )

    def messages(self, trained: Specs, config: Config) -> Specs:
        """Centroids up, prototypes down."""
        if not self.weight:
            return {}
        dim = config.ssl.output_dim
        return {
            "centroids": TensorSpec((self.local_clusters, dim), torch.float32, False, "upload"),
            "prototypes": TensorSpec((self.global_clusters, dim), torch.float32, False, "download"),
        }

    def begin_visit(self, visit: LocalVisit) -> None:
        """The prototypes."""
        visit.provide(visit.messages)

    def local_loss(self, step: LocalStep) -> Tensor | None:
        """The term; 0 and no gradient while there are no prototypes."""
        if not self.weight:
            return None
        prototypes_KD = step.provided["prototypes"]
        (z1, z2), (k1, k2) = step.output["projections"], step.output["targets"]
        term = (self.term(z1, k2, prototypes_KD) + self.term(z2, k1, prototypes_KD)) / 2
        return self.weight * torch.where(prototypes_KD.any(), term, torch.zeros_like(term))

    def term(self, z_BD: Tensor, target_BD: Tensor, prototypes_KD: Tensor) -> Tensor:
        """Cross-entropy of soft assignments."""
        scores_BK, wanted_BK = (
            F.normalize(one.float(), dim=1) @ prototypes_KD.T / self.temperature for one in (z_BD, target_BD)
        )
        return F.cross_entropy(scores_BK, wanted_BK.softmax(dim=1))

    def end_visit(self, visit: LocalVisit) -> None:
        """Centroids of the client's projections, by the trained model; the first ones are drawn."""
        if self.weight:
            z_ND = F.normalize(visit.project(visit.draw(self.rows)).float(), dim=1)
            visit.send({"centroids": clustered(z_ND, z_ND[: self.local_clusters], self.iterations)})

    def after_messages(self, arrived: dict[str, Tensor], server: ServerState) -> dict[str, Tensor]:
        """Prototypes of all centroids; the first ones are drawn."""
        points_PD = arrived["centroids"].flatten(0, 1)
        order = torch.randperm(len(points_PD), generator=generator(server.seed, "orchestra", server.round_index))
        first = order[torch.arange(self.global_clusters) % len(order)]
        return {"prototypes": clustered(points_PD, points_PD[first], self.iterations)}


def clustered(points_PD: Tensor, centroids_KD: Tensor, iterations: int) -> Tensor:
    """Balanced spherical k-means: c_k <- the direction of sum_i Q_ik x_i, Q the balanced assignment."""
    for _ in range(iterations):
        assigned_PK = balanced(points_PD @ centroids_KD.T)
        centroids_KD = F.normalize(assigned_PK.T @ points_PD, dim=1)
    return centroids_KD


def balanced(scores_PK: Tensor) -> Tensor:
    """Sinkhorn-Knopp: P points over K clusters, each point's shares add up to 1, each cluster's to about P / K."""
    log_PK = scores_PK / SOFTNESS
    for _ in range(SINKHORN):
        log_PK = log_PK - log_PK.logsumexp(dim=0)
        log_PK = log_PK - log_PK.logsumexp(dim=1, keepdim=True)
    return log_PK.exp()
