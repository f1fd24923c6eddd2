"""The pre-training pool split over the clients: index lists, every sample at exactly one client.

Shapes: N samples, K classes, M clients.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbench.config.schema import PartitionConfig
from fedbench.data.partitions.class_partition import by_classes
from fedbench.data.partitions.groups import by_groups
from fedbench.errors import UserError

DIRICHLET_ATTEMPTS = 20


def partition(
    labels: Tensor,
    num_clients: int,
    config: PartitionConfig,
    generator: torch.Generator,
    names: Sequence[str] = (),
) -> list[Tensor]:
    """Sorted int64 indices into `labels` (N,), one tensor per client, at least `config.min_size` in each.

    `iid`: a random split, sizes differ by at most one. `dirichlet`: each class is spread over the clients in
    proportions ~ Dir(beta) (Hsu et al., arXiv:1909.06335). `quantity`: the sizes are ~ Dir(beta), the classes
    are not looked at (Li et al., arXiv:2102.02079). `classes`: see `by_classes`. `groups`: see `by_groups`, for
    which `names` (N,) are the images'.
    UserError: there are too few samples, or they have no labels, or not those that the split needs.
    """
    _check(labels, num_clients, config)
    if config.name == "iid":
        shuffled_N = torch.randperm(len(labels), generator=generator)
        return [indices.sort().values for indices in shuffled_N.tensor_split(num_clients)]
    if config.name == "groups":
        return by_groups(names, num_clients, config)
    rng = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))
    if config.name == "classes":
        return by_classes(labels.cpu().numpy(), num_clients, config, rng)
    mixed = labels if config.name == "dirichlet" else torch.zeros_like(labels)
    return _dirichlet(mixed.cpu().numpy(), num_clients, config, rng)


def _check(labels: Tensor, num_clients: int, config: PartitionConfig) -> None:
    if num_clients * config.min_size > len(labels):
        raise UserError(
            f"federation.num_clients={num_clients} needs {config.min_size} samples per client "
            f"(data.partition.min_size); "
            f"allowed with {len(labels)} samples: 1 to {len(labels) // config.min_size}"
        )
    if config.name in ("dirichlet", "classes") and labels.min() < 0:
        raise UserError(
            f"data.partition.name={config.name} needs labels, which the clients' images have not; "
            "allowed: iid, quantity, groups"
        )


def _dirichlet(
    labels_N: NDArray[np.int64], num_clients: int, config: PartitionConfig, rng: np.random.Generator
) -> list[Tensor]:
    """Draw how many samples of each class each client gets, then which ones."""
    classes, class_sizes_K = np.unique(labels_N, return_counts=True)
    counts_KM = _counts(class_sizes_K, num_clients, config, rng)
    shares: list[list[NDArray[np.int64]]] = [[] for _ in range(num_clients)]
    for name, counts_M in zip(classes, counts_KM, strict=True):
        members = rng.permutation(np.flatnonzero(labels_N == name))
        for share, indices in zip(shares, np.split(members, counts_M.cumsum()[:-1]), strict=True):
            share.append(indices)
    return [torch.from_numpy(np.sort(np.concatenate(share))) for share in shares]


def _counts(
    class_sizes_K: NDArray[np.int64], num_clients: int, config: PartitionConfig, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Samples per class and client, (K, M), every client at least `min_size`.

    A draw that leaves a client short is drawn again: what is accepted is still Dirichlet, given that all have
    enough. With many clients or a small beta that may never happen, so after DIRICHLET_ATTEMPTS draws the
    last one is repaired by moving single samples, at most `num_clients * min_size` of them.
    """
    for _ in range(DIRICHLET_ATTEMPTS):
        shares_KM = rng.dirichlet(np.full(num_clients, config.beta), size=len(class_sizes_K))
        ends_KM = np.floor(shares_KM.cumsum(axis=1) * class_sizes_K[:, None]).astype(np.int64)
        ends_KM[:, -1] = class_sizes_K
        counts_KM = np.diff(ends_KM, axis=1, prepend=0)
        if counts_KM.sum(axis=0).min() >= config.min_size:
            return counts_KM
    return _repair(counts_KM, config.min_size, rng)


def _repair(counts_KM: NDArray[np.int64], min_size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Move samples, of a class drawn by the donor's own mix, from the largest client to the smallest."""
    while (sizes_M := counts_KM.sum(axis=0)).min() < min_size:
        donor, receiver = sizes_M.argmax(), sizes_M.argmin()
        moved = rng.choice(len(counts_KM), p=counts_KM[:, donor] / sizes_M[donor])
        counts_KM[moved, donor] -= 1
        counts_KM[moved, receiver] += 1
    return counts_KM
