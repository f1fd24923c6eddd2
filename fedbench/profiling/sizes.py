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
    """Samples of each client, and where the figures come from, in words."""

    clients: tuple[int, ...]
    source: str


def client_sizes(config: Config, mechanisms: Sequence[Mechanism], samples: int | Sequence[int] | None) -> Sizes:
    """Samples per client: those given, those of a data set that is shipped, an even split of `data.num_train`.

    If none of these is known, one batch for each client.
    """
    sizes = _sizes(config, mechanisms, samples)
    least, needed = min(sizes.clients), config.data.partition.min_size
    if least < needed:
        raise UserError(
            f"a client would have {least} samples ({sizes.source}); allowed:"
            f" {needed} (data.partition.min_size) or more"
        )
    return sizes


def _sizes(config: Config, mechanisms: Sequence[Mechanism], samples: int | Sequence[int] | None) -> Sizes:
    clients, batch = config.federation.num_clients, config.optimizer.batch_size
    if isinstance(samples, Sequence):
        return Sizes(tuple(samples), "the data's own sizes")
    if samples is not None:
        return Sizes((samples,) * clients, f"{samples} per client, as asked for")
    if config.data.name in SHIPPED:
        return _sizes(config, mechanisms, [len(indices) for indices in prepare(config).client_indices])
    total = config.data.num_train
    if total is not None:
        held_out = sum(round(wish * total) for wish in _wishes(mechanisms) if isinstance(wish, float))
        counts = tuple(len(part) for part in torch.arange(total - held_out).tensor_split(clients))
        own = config.data.partition.name
        asked = "" if own == "iid" else f"; the {own} split of the configuration is not known unread"
        return Sizes(counts, f"an even split of data.num_train={total}{asked}")
    return Sizes(
        (batch,) * clients,
        f"ASSUMED one batch ({batch}) per client: the size of {config.data.name} is not known unread; "
        "give --samples N or data.num_train=N",
    )


def _wishes(mechanisms: Sequence[Mechanism]) -> Sequence[object]:
    wishes = [mechanism.auxiliary() for mechanism in mechanisms]
    return [wish for wish in wishes if wish is not None][:1]  # as in `prepare`, the first one counts
