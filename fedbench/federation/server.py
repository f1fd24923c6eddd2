"""The server: the global model's tensors, their versions, and what leaves and enters as payload."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from fedbench.errors import UserError
from fedbench.federation.payload import StateDict, encode, select
from fedbench.federation.plan import group_of
from fedbench.federation.versions import Versions


@dataclass(frozen=True)
class Download:
    """What one client is sent before it trains.

    Attributes:
        data: safetensors bytes of the groups that the client lacks.
        versions: version of every group that the client needs, those that it holds already included.
        catch_up_bytes: bytes of the tensors among them that are no news: others could have them a round ago.
    """

    data: bytes
    versions: Mapping[str, int]
    catch_up_bytes: int


class Server:
    """Holds one copy of the model's online state, on the CPU, and no copy per client."""

    def __init__(self, num_clients: int) -> None:
        self.state: StateDict = {}
        self.groups: list[str] = []  # of the current stage's model, in the order of its state
        self.versions = Versions(num_clients)
        self._encoded: dict[tuple[tuple[str, int], ...], bytes] = {}

    def grow(self, initial: Mapping[str, Tensor]) -> None:
        """Take over the model of a new stage: groups that exist keep their values, new ones take `initial`'s.

        A group whose shape changed (the reshaping layer of a longer ResNet) is a new one.
        """
        old = self.state
        changed = {
            group_of(key) for key, value in initial.items() if key not in old or old[key].shape != value.shape
        }
        self.state = {
            key: (value if group_of(key) in changed else old[key]).detach().clone()
            for key, value in initial.items()
        }
        self.groups = list(dict.fromkeys(map(group_of, self.state)))
        for group in sorted(changed):
            self.versions.rise(group)

    def download(self, client: int, active: Sequence[int]) -> Download:
        """What the client lacks of the groups that it needs, as bytes; from here on it holds them.

        It needs everything but the blocks that it does not run.
        """
        blocks = {f"block_{number + 1}" for number in active}
        needed = [group for group in self.groups if group in blocks or not group.startswith("block_")]
        missing = self.versions.missing(client, needed)
        catch_up = [group for group in missing if group not in self.versions.news]
        data = self._encode(missing)
        self.versions.hold(client, missing)
        values = select(self.state, catch_up).values()
        return Download(
            data,
            {group: self.versions.current[group] for group in needed},
            sum(value.nbytes for value in values),
        )

    def overwritten(self, client: int, groups: Set[str]) -> None:
        """The client has changed or thrown away `groups`: it holds no version of them any more."""
        self.versions.forget(client, [group for group in self.groups if group in groups])

    def apply(self, values: Mapping[str, Tensor]) -> None:
        """Take over new values; the version of a group rises if one of its values changed.

        Raises:
            UserError: a strategy returned a tensor that the model does not have, or one of another shape.
        """
        for key, value in values.items():
            own = self.state.get(key)
            if own is None or own.shape != value.shape or own.dtype != value.dtype:
                has = "no such tensor" if own is None else f"{tuple(own.shape)}, {own.dtype}"
                raise UserError(
                    f"aggregate returned {key!r} of shape {tuple(value.shape)}, {value.dtype}; the model has {has}"
                )
        changed = {group_of(key) for key, value in values.items() if not torch.equal(self.state[key], value)}
        self.state.update({key: value.detach().to("cpu", copy=True) for key, value in values.items()})
        for group in sorted(changed):
            self.versions.rise(group)

    def _encode(self, groups: list[str]) -> bytes:
        """Encoded once for all clients that lack the same groups in the same versions."""
        key = tuple((group, self.versions.current[group]) for group in groups)
        if key not in self._encoded:
            current = self.versions.current.items()
            self._encoded = {old: data for old, data in self._encoded.items() if set(old) <= set(current)}
            self._encoded[key] = encode(select(self.state, groups))
        return self._encoded[key]
