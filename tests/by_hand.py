"""A client's local training written by hand: formulas in plain tensors, no optimizer, no Fabric, no `LocalTask`.

Shapes: B samples, D output dimensions.
"""

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fedbench.config import Config
from fedbench.data import Views
from fedbench.random import generator
from fedbench.ssl import SSLMethod

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # of AdamW, as torch has them


def moco_v3(q: list[Tensor], k: list[Tensor], temperature: float) -> Tensor:
    """l(q1, k2) + l(q2, k1), each -log of the share that a sample's own other view has."""

    def one(q_BD: Tensor, k_BD: Tensor) -> Tensor:
        alike = torch.exp(unit(q_BD) @ unit(k_BD).T / temperature)
        return -(alike.diagonal() / alike.sum(1)).log().mean()

    return one(q[0], k[1]) + one(q[1], k[0])


def byol(q: list[Tensor], k: list[Tensor], temperature: float) -> Tensor:
    """The squared distance of what is predicted from what is there, both of length one."""
    pairs = ((q[0], k[1]), (q[1], k[0]))
    return torch.stack([(unit(q_BD) - unit(k_BD)).square().sum(1).mean() for q_BD, k_BD in pairs]).sum()


def simclr(q: list[Tensor], k: list[Tensor], temperature: float) -> Tensor:
    """-log of the share that a view's partner has among all views but itself."""
    z = unit(torch.cat(q))
    alike = torch.exp(z @ z.T / temperature)
    others = alike.sum(1) - alike.diagonal()
    count = len(q[0])
    partners = torch.cat([alike.diagonal(count), alike.diagonal(-count)])
    return -(partners / others).log().mean()


def unit(z_BD: Tensor) -> Tensor:
    return z_BD / z_BD.square().sum(1, keepdim=True).sqrt()


LOSSES = {"moco_v3": moco_v3, "byol": byol, "simclr": simclr}


def batches_of(images: Sequence[int], config: Config, shuffle: torch.Generator) -> Iterator[list[int]]:
    """ceil(E n / B) batches; what stands in an unfinished batch comes last in the shuffle after it."""
    size, epochs = min(config.optimizer.batch_size, len(images)), config.federation.local_epochs
    left = -(-epochs * len(images) // size)
    batch: list[int] = []
    while left:
        shuffled = [images[place] for place in torch.randperm(len(images), generator=shuffle).tolist()]
        waiting = [image for image in shuffled if image in batch]
        for image in [image for image in shuffled if image not in waiting] + waiting:
            batch.append(image)
            if len(batch) == size and left:
                yield batch
                batch, left = [], left - 1


class ByHand:
    """One visit, from a copy of `model`, which knows what is trained; the added loss has the gradient `slope`.

    Attributes:
        losses, added: of every step, the SSL method's loss and the added one.
        z1_BD: the last step's projections of the first view.
        target: the target branch's encoder and projection head.
        state: the online branch.
    """

    def __init__(
        self,
        model: SSLMethod,
        config: Config,
        views: Views,
        images: Tensor,
        visit: tuple[Sequence[int], int, int],
        slope: float = 0.0,
    ) -> None:
        """`visit`: the indices of the client's images, the round, the client's number."""
        self.model, self.config, self.slope = copy.deepcopy(model), config, slope
        self.target = copy.deepcopy((self.model.encoder, self.model.projection_head))
        self.weights = {key: weight for key, weight in self.model.named_parameters() if weight.requires_grad}
        self.means = {key: torch.zeros_like(weight) for key, weight in self.weights.items()}
        self.squares = copy.deepcopy(self.means)
        self.losses: list[float] = []
        self.added: list[float] = []
        indices, *key = visit
        draw = generator(config.seed, "augment", *key)
        for batch in batches_of(indices, config, generator(config.seed, "shuffle", *key)):
            self._step(views(images[batch], draw))
        self.state = self.model.online_state()

    def _step(self, views: tuple[Tensor, Tensor]) -> None:
        model, (encoder, head) = self.model, self.target
        z = [model.projection_head(model.encoder(view)) for view in views]
        q = [model.prediction_head(one) for one in z]
        with torch.no_grad():
            k = [head(encoder(view)) for view in views]
        loss = LOSSES[self.config.ssl.name](q, k, self.config.ssl.temperature)
        added = self.slope * torch.stack([weight.sum() for weight in self.weights.values()]).sum()
        gradients = torch.autograd.grad(loss + added, list(self.weights.values()))
        self.z1_BD = z[0].detach()
        self.losses.append(loss.item())
        self.added.append(added.item())
        with torch.no_grad():
            for (key, weight), gradient in zip(self.weights.items(), gradients, strict=True):
                weight.copy_(self._adamw(key, weight, gradient))
            self._follow(encoder, model.encoder)
            self._follow(head, model.projection_head)

    def _adamw(self, key: str, w: Tensor, gradient: Tensor) -> Tensor:
        """w - lr decay w - lr m / (sqrt(v) + epsilon): the decay is no part of the gradient."""
        optimizer, step = self.config.optimizer, len(self.losses)
        lr = optimizer.base_lr * optimizer.batch_size / 256
        self.means[key] = BETA_1 * self.means[key] + (1 - BETA_1) * gradient
        self.squares[key] = BETA_2 * self.squares[key] + (1 - BETA_2) * gradient**2
        mean, square = self.means[key] / (1 - BETA_1**step), self.squares[key] / (1 - BETA_2**step)
        return w - lr * optimizer.weight_decay * w - lr * mean / (square.sqrt() + EPSILON)

    def _follow(self, target: nn.Module, online: nn.Module) -> None:
        m = self.config.ssl.momentum
        for theirs, ours in zip(target.parameters(), online.parameters(), strict=True):
            theirs.copy_(m * theirs + (1 - m) * ours)
