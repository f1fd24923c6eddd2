"""The partition `classes`: every client has k classes, and no image of another.

Shapes: N samples, K classes, M clients.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbench.config.schema import PartitionConfig
from fedbench.errors import UserError


def by_classes(
    labels_N: NDArray[np.int64], num_clients: int, config: PartitionConfig, rng: np.random.Generator
) -> list[Tensor]:
    """k random classes for each client, in a way that all classes have the same number of holders, +- 1.

    The holders of a class share it evenly ("#C = k" of Li et al., arXiv:2102.02079, but no class is left out).
    UserError: k or the number of clients does not fit the classes, or a class or a client is too small.
    """
    assert config.classes is not None
    classes, class_sizes_K = np.unique(labels_N, return_counts=True)
    _check(len(classes), num_clients, config.classes)
    holds_MK = _holders(len(classes), num_clients, config.classes, rng)
    shares: list[list[NDArray[np.int64]]] = [[] for _ in range(num_clients)]
    for name, holds_M, size in zip(classes, holds_MK.T, class_sizes_K, strict=True):
        holders = np.flatnonzero(holds_M)
        if size < len(holders):
            raise UserError(
                f"class {name} has {size} samples for {len(holders)} clients; allowed: a smaller "
                "data.partition.classes or federation.num_clients"
            )
        members = rng.permutation(np.flatnonzero(labels_N == name))
        for client, part in zip(holders, np.array_split(members, len(holders)), strict=True):
            shares[client].append(part)
    clients = [np.sort(np.concatenate(share)) for share in shares]
    _check_sizes(clients, config.min_size)
    return [torch.from_numpy(indices) for indices in clients]


def _holders(num_classes: int, num_clients: int, k: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Who holds what, (M, K): each client takes k of those with the fewest holders so far, by lot."""
    holds_MK = np.zeros((num_clients, num_classes), dtype=bool)
    for client in range(num_clients):
        order_K = np.lexsort((rng.random(num_classes), holds_MK.sum(axis=0)))
        holds_MK[client, order_K[:k]] = True
    return holds_MK


def _check(num_classes: int, num_clients: int, k: int) -> None:
    if k > num_classes:
        raise UserError(f"data.partition.classes={k}; allowed with {num_classes} classes: 1 to {num_classes}")
    if k * num_clients < num_classes:
        raise UserError(
            f"data.partition.classes={k} on federation.num_clients={num_clients} hold {k * num_clients} of the "
            f"{num_classes} classes; allowed: {-(-num_classes // num_clients)} classes or more, or more clients"
        )


def _check_sizes(clients: list[NDArray[np.int64]], min_size: int) -> None:
    least = min(map(len, clients))
    if least < min_size:
        raise UserError(
            f"data.partition.min_size={min_size}, but a client would have {least} samples; allowed: fewer "
            "clients, more classes per client, or a smaller min_size"
        )
