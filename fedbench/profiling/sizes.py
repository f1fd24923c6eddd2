"""How many samples a client has, without reading any."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fedbench.config.schema import Config
from fedbench.data import SHIPPED
from fedbench.errors import UserError
from fedbench.federation import Mechanism
from fedbench.federation.experiment import prepare, server_images


@dataclass(frozen=True)
class Sizes:
    """How many images there are where.

    Attributes:
        clients: of each client.
        server: of the server, by the mechanism that asks for them.
        source: where the figures come from, in words.
    """

    clients: tuple[int, ...]
    server: Mapping[str, int]
    source: str


def client_sizes(
    config: Config,
    mechanisms: Sequence[Mechanism],
    samples: int | Sequence[int] | None,
    server_samples: Mapping[str, int] | None = None,
) -> Sizes:
    """Samples per client: those given, those of a data set that is shipped, an even split of `data.num_train`.

    If none of these is known, one batch for each client. The server's: those given, those of a set that is
    shipped, the share of the pool that its mechanism names, else one batch. The configuration was checked before.
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
) -> tuple[tuple[int, ...], dict[str, int], str]:
    clients, batch = config.federation.num_clients, config.optimizer.batch_size
    wishes = server_images(mechanisms)
    shares = {name: wish for name, wish in wishes.items() if isinstance(wish, float)}
    elsewhere = dict.fromkeys(wishes.keys() - shares.keys(), batch)  # other data sets: not known unread
    largest = max(shares.values(), default=0.0)  # what is held out: it has the others in it

    def of_server(total: float) -> dict[str, int]:
        return elsewhere | {name: round(total * share) for name, share in shares.items()}

    if isinstance(samples, Sequence):
        return tuple(samples), of_server(sum(samples) / (1 - largest)), "the data's own sizes"
    if samples is not None:
        server = of_server(samples * clients / (1 - largest))
        return (samples,) * clients, server, f"{samples} per client, as asked for"
    if config.data.name in SHIPPED:
        experiment = prepare(config, tried=True)
        counts = tuple(len(indices) for indices in experiment.client_indices)
        return counts, {name: len(one) for name, one in experiment.auxiliary.items()}, "the data's own sizes"
    total = config.data.num_train
    if total is not None:
        left = total - round(largest * total)
        counts = tuple(len(part) for part in torch.arange(left).tensor_split(clients))
        split = config.data.partition.name
        asked = "" if split == "iid" else f"; the {split} split of the configuration is not known unread"
        return counts, of_server(total), f"an even split of data.num_train={total}{asked}"
    return (
        (batch,) * clients,
        dict.fromkeys(wishes, batch),
        f"ASSUMED one batch ({batch}) per client: the size of {config.data.name} is not known unread; "
        "give --samples N or data.num_train=N",
    )
