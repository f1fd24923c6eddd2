"""How many samples a client has, without reading any."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedbench.config.schema import Config
from fedbench.data import SHIPPED
from fedbench.errors import UserError
from fedbench.federation import Mechanism
from fedbench.federation.experiment import prepare


@dataclass(frozen=True)
class Sizes:
    """Samples of each client and of the server, and where the figures come from, in words."""

    clients: tuple[int, ...]
    server: int
    source: str


def client_sizes(
    config: Config,
    mechanisms: Sequence[Mechanism],
    samples: int | Sequence[int] | None,
    server_samples: int | None = None,
) -> Sizes:
    """Samples per client: those given, those of a data set that is shipped, an even split of `data.num_train`.

    If none of these is known, one batch for each client. The server's: those given, those of a set that is
    shipped, the share of the pool that its mechanism names, else one batch.
    """
    counts, server, source = _sizes(config, mechanisms, samples)
    least, needed = min(counts), config.data.partition.min_size
    if least < needed:
        raise UserError(
            f"a client would have {least} samples ({source}); allowed: {needed} (data.partition.min_size) or more"
        )
    return Sizes(counts, server if server_samples is None else server_samples, source)


def _sizes(
    config: Config, mechanisms: Sequence[Mechanism], samples: int | Sequence[int] | None
) -> tuple[tuple[int, ...], int, str]:
    clients, batch = config.federation.num_clients, config.optimizer.batch_size
    wish = next((found for one in mechanisms if (found := one.auxiliary()) is not None), None)  # as in `prepare`
    share = wish if isinstance(wish, float) else 0.0
    elsewhere = 0 if wish is None or share else batch  # of another data set, whose size is not known unread
    if isinstance(samples, Sequence):
        return tuple(samples), elsewhere or _held_out(sum(samples), share), "the data's own sizes"
    if samples is not None:
        server = elsewhere or _held_out(samples * clients, share)
        return (samples,) * clients, server, f"{samples} per client, as asked for"
    if config.data.name in SHIPPED:
        experiment = prepare(config)
        counts = tuple(len(indices) for indices in experiment.client_indices)
        return counts, len(experiment.auxiliary), "the data's own sizes"
    total = config.data.num_train
    if total is not None:
        server = round(share * total)
        counts = tuple(len(part) for part in torch.arange(total - server).tensor_split(clients))
        split = config.data.partition.name
        asked = "" if split == "iid" else f"; the {split} split of the configuration is not known unread"
        return counts, elsewhere or server, f"an even split of data.num_train={total}{asked}"
    return (
        (batch,) * clients,
        batch if wish is not None else 0,
        f"ASSUMED one batch ({batch}) per client: the size of {config.data.name} is not known unread; "
        "give --samples N or data.num_train=N",
    )


def _held_out(left: int, share: float) -> int:
    """Images that the server took from a pool of which `left` are left."""
    return round(left * share / (1 - share))
