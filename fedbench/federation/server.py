"""The server: the global model's tensors, and what leaves it as payload."""

from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedbench.encoders.tensor_groups import StateDict, by_group, group_of, select
from fedbench.errors import UserError
from fedbench.federation.aggregation import Memory
from fedbench.federation.diagnostics import flatten
from fedbench.federation.dispatch import Dispatch
from fedbench.federation.payload import decode, encode, received_bytes
from fedbench.federation.plan import StagePlan
from fedbench.federation.shipment import Specs
from fedbench.federation.versions import NOTHING
from fedbench.federation.wire import added, as_they_are, coded, is_packed, subtracted

# kinds of tensors in a checkpoint
STATE, HELD, MEMORY, SENT, PACKED = "state/", "held/", "memory/", "sent/", "packed/"


class RejectedError(Exception):
    """An upload that cannot be used, and why."""


class Accepted(NamedTuple):
    """An upload: the values that the client ended with as far as the server knows them, and the bytes counted."""

    state: StateDict
    num_bytes: int


class Sent(NamedTuple):
    """Of a group, what clients were sent last: the version, its coded values as they have them, and packed."""

    version: int
    values: StateDict
    packed: StateDict


class Server:
    """Holds one copy of the model's online state, on the CPU, and no copy per client."""

    def __init__(self, dispatch: Dispatch) -> None:
        self.state: StateDict = {}
        self.memory: Memory = {}  # what plugins keep
        self.dispatch = dispatch
        self._sent: dict[str, Sent] = {}  # only of groups that are packed on the way down
        self._encoded: dict[tuple[tuple[str, int, bool], ...], bytes] = {}

    def start_stage(
        self, plan: StagePlan, specs: Specs, initial: Mapping[str, Tensor], anew: Set[str] = frozenset()
    ) -> None:
        """Take over the model of a new stage: groups keep their values, new ones and those `anew` get `initial`'s.

        A group whose shape changed (the reshaping layer of a longer ResNet) is a new one.
        """
        new, old = self.dispatch.start_stage(plan, specs, anew), self.state
        self._sent = {group: sent for group, sent in self._sent.items() if group not in new}
        self.state = {
            key: (value if group_of(key) in new else old[key]).detach().clone() for key, value in initial.items()
        }

    def accept(self, data: bytes) -> Accepted:
        """An upload, decoded.

        Raises:
            RejectedError: it does not decode, does not fit the model, or is not finite.
        """
        try:
            arrived = decode(data)
        except UserError as error:
            raise RejectedError(f"does not decode: {error}") from error
        state: StateDict = {}
        for group, part in by_group(arrived).items():
            state |= self._unpacked(group, part) if is_packed(part) else part
        for key, value in state.items():
            if key not in self.state or self.state[key].shape != value.shape:
                raise RejectedError(f"{key} is not a tensor of the model")
        if not flatten(state).sum().isfinite():  # else all are: one by one takes longer than to decode them
            for key, value in state.items():
                if not value.isfinite().all():
                    raise RejectedError(f"{key} is not finite")
        return Accepted(state, received_bytes(data, arrived))

    def _unpacked(self, group: str, part: StateDict) -> StateDict:
        """What a client ended with: what it was sent, and the change that it sent back."""
        wire, specs = self.dispatch.wire, self.dispatch.by_group.get(group, {})
        declared = wire.specs(group, specs, "upload")
        for key in part.keys() | declared.keys():
            if key not in part or key not in declared or declared[key].shape != part[key].shape:
                raise RejectedError(f"{key} does not fit what is declared of {group}")
        try:
            change = wire.unpack(group, part, specs, "upload")
        except (UserError, RuntimeError, IndexError, ValueError) as error:  # indices that point nowhere
            raise RejectedError(f"{group} cannot be unpacked: {error}") from error
        rest = {key: part[key] for key in as_they_are(specs)}
        return added(self.sent(group), change) | rest

    def apply(self, values: Mapping[str, Tensor], aggregated: bool) -> None:
        """Take over new values; the version of a group rises if one of its values changed.

        Args:
            values: by key of the model's online state.
            aggregated: whether they are the clients' aggregate, or the server's own doing.
        """
        changed = {group_of(key) for key, value in values.items() if not torch.equal(self.state[key], value)}
        self.state.update({key: value.detach().to("cpu", copy=True) for key, value in values.items()})
        self.dispatch.changed(changed, aggregated)

    def encode(self, groups: Sequence[str], packed: Collection[str] = ()) -> bytes:
        """Groups in their current versions, some packed; encoded once for all who are to be sent the same."""
        versions = self.dispatch.versions.current
        key = tuple((group, versions[group], group in packed) for group in groups)
        if key not in self._encoded:
            current = {(group, version, form) for group, version in versions.items() for form in (False, True)}
            self._encoded = {old: data for old, data in self._encoded.items() if current.issuperset(old)}
            self._encoded[key] = encode(self._travelling(groups, packed))
        return self._encoded[key]

    def _travelling(self, groups: Sequence[str], packed: Collection[str]) -> StateDict:
        state = select(self.state, groups)
        for group in groups:
            if self._is_lossy(group):
                sent = self._publish(group)
                state |= sent.values
                if group in packed:
                    state = {key: value for key, value in state.items() if key not in sent.values} | sent.packed
        return state

    def _is_lossy(self, group: str) -> bool:
        """Whether clients have other values of a group than the server."""
        return self.dispatch.wire.packs("download") and bool(coded(self.dispatch.by_group[group]))

    def sent(self, group: str) -> StateDict:
        """What a client has of a group when it was sent the version that clients are sent now."""
        values = select(self.state, {group})
        return values | self._sent[group].values if group in self._sent else values

    def _publish(self, group: str) -> Sent:
        version, _ = self.dispatch.versions.published[group]
        if group not in self._sent or self._sent[group].version != version:
            self._sent[group] = self._packed(group, version)
        return self._sent[group]

    def _packed(self, group: str, version: int) -> Sent:
        """A version that clients are sent from now on. What its form loses is in the change to the next one."""
        wire, specs, base = self.dispatch.wire, self.dispatch.by_group[group], self.dispatch.base(group)
        values = {key: self.state[key] for key in coded(specs)}
        if base is None:
            return Sent(version, values, {})
        before = self._sent[group].values if base != NOTHING else {}
        packed = wire.pack(group, subtracted(values, before), specs, "download", version)
        received = added(before, wire.unpack(group, packed, specs, "download"))
        if self.dispatch.is_finished(group):  # there is no next one: what is trained on it has it as clients do
            self.state |= received
        return Sent(version, received, packed)

    def known(self) -> dict[str, tuple[int, StateDict]]:
        """Group -> version and values of what some client may hold."""
        versions = self.dispatch.versions
        held = {group: versions.current[group] for group in self.dispatch.groups if versions.held_by_anyone(group)}
        held |= {group: sent.version for group, sent in self._sent.items() if group in self.dispatch.groups}
        return {group: (version, self.sent(group)) for group, version in held.items()}

    def snapshot(self) -> tuple[dict[str, object], StateDict]:
        """For a checkpoint: plain values, and tensors by kind and name."""
        versions = self.dispatch.versions
        held = {f"{HELD}{group}": torch.from_numpy(numbers) for group, numbers in versions.held().items()}
        values = {f"{STATE}{key}": value.contiguous() for key, value in self.state.items()}
        memory = {
            f"{MEMORY}{plugin}/{name}": value.contiguous()
            for plugin, tensors in self.memory.items()
            for name, value in tensors.items()
        }
        sent = {f"{SENT}{key}": value for one in self._sent.values() for key, value in one.values.items()}
        packed = {f"{PACKED}{key}": value for one in self._sent.values() for key, value in one.packed.items()}
        return {"versions": versions.facts()}, {**values, **held, **memory, **sent, **packed}

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from a snapshot, in a stage that the dispatch knows."""
        held = {key.removeprefix(HELD): v.numpy() for key, v in tensors.items() if key.startswith(HELD)}
        self.dispatch.versions.restore(facts["versions"], held)
        self.state = {key.removeprefix(STATE): v for key, v in tensors.items() if key.startswith(STATE)}
        for key, value in tensors.items():
            if key.startswith(MEMORY):
                plugin, name = key.removeprefix(MEMORY).split("/", 1)
                self.memory.setdefault(plugin, {})[name] = value
        sent, packed = (
            by_group({key.removeprefix(kind): value for key, value in tensors.items() if key.startswith(kind)})
            for kind in (SENT, PACKED)
        )
        published = self.dispatch.versions.published
        self._sent = {
            group: Sent(published[group][0], values, packed.get(group, {})) for group, values in sent.items()
        }
