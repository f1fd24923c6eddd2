"""The server: the global model's tensors, and what leaves it as payload."""

from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedbench.encoders.tensor_groups import (
    Specs,
    StateDict,
    by_group,
    group_of,
    group_of_variant,
    is_message,
    on_wire,
    select,
    travelling,
    variant,
)
from fedbench.errors import UserError
from fedbench.federation.aggregation import Memory
from fedbench.federation.codec import Way
from fedbench.federation.diagnostics import flatten
from fedbench.federation.dispatch import Dispatch
from fedbench.federation.messages import zeros
from fedbench.federation.payload import decode, encode, received_bytes
from fedbench.federation.plan import StagePlan
from fedbench.federation.versions import NOTHING
from fedbench.federation.wire import added, is_packed, subtracted

# kinds of tensors in a checkpoint
STATE, HELD, MEMORY, SENT, PACKED, SAID = "state/", "held/", "memory/", "sent/", "packed/", "said/"
OWN = "own/"


class RejectedError(Exception):
    """An upload that cannot be used, and why."""


class Accepted(NamedTuple):
    """An upload: the values that the client ended with as far as the server knows them, and the bytes counted.

    Attributes:
        messages: by key on the wire.
        holds: where the client has entries of its own, of tensors of which it has not all (`PersonalCodec.holds`).
        told: what the state of its codec becomes, by the tensor's key.
    """

    state: StateDict
    messages: StateDict
    num_bytes: int
    holds: StateDict
    told: StateDict


class Sent(NamedTuple):
    """Of a group, what clients were sent last: the version, its coded values as they have them, and packed."""

    version: int
    values: StateDict
    packed: StateDict


class Server:
    """Holds one copy of the model's online state, on the CPU, and no copy per client.

    Where codecs pack what clients are sent: also what clients have of it, for each tier of them. Where payloads
    are each client's own: the state of each client that both ends remember, in `dispatch.wire`, and no values.

    Attributes:
        agreed: client -> group -> round of the upload in which the client told the state that both ends remember.
    """

    def __init__(self, dispatch: Dispatch) -> None:
        self.state: StateDict = {}
        self.messages: StateDict = {}  # by key on the wire
        self.memory: Memory = {}  # what plugins keep
        self.dispatch = dispatch
        self.agreed: dict[int, dict[str, int]] = {}
        self._sent: dict[str, Sent] = {}  # by variant, only of groups that are packed on the way down
        self._encoded: dict[tuple[tuple[str, int, bool], ...], bytes] = {}

    def start_stage(
        self, plan: StagePlan, specs: Specs, initial: Mapping[str, Tensor], anew: Set[str] = frozenset()
    ) -> None:
        """Take over the model of a new stage: groups keep their values, new ones and those `anew` get `initial`'s.

        A group whose shape changed (the reshaping layer of a longer ResNet) is a new one.
        """
        new, old = self.dispatch.start_stage(plan, specs, anew), self.state
        self._forget(new)
        self._sent = {name: sent for name, sent in self._sent.items() if group_of_variant(name) not in new}
        self.state = {
            key: (value if group_of(key) in new else old[key]).detach().clone() for key, value in initial.items()
        }
        for group in self._sent:  # nobody returned since: there is no later version
            if group in self.dispatch.groups:
                self._take_over(group, self._sent[group])
        said = {key: spec for key, spec in travelling(specs, "download").items() if on_wire(key)}
        kept = {key: value for key, value in self.messages.items() if key in said and group_of(key) not in new}
        self.messages = zeros(said) | kept

    def accept(self, data: bytes, client: int = 0) -> Accepted:
        """An upload, decoded.

        Raises:
            RejectedError: it does not decode, does not fit the model, or is not finite.
        """
        try:
            arrived = decode(data)
        except UserError as error:
            raise RejectedError(f"does not decode: {error}") from error
        state, holds, told = StateDict(), StateDict(), StateDict()
        for group, part in by_group(arrived).items():
            if not is_packed(part):
                state |= self._changed(group, part, client)
                continue
            values, news = self._unpacked(group, part, client)
            state, told = state | values, told | news
            holds |= self.dispatch.wire.holds(group, self.dispatch.by_group[group], client)
        known = travelling(self.dispatch.specs, "upload")
        for key, value in state.items():
            if key not in known or known[key].shape != tuple(value.shape):
                raise RejectedError(f"{key} is not a tensor of the model")
        if not flatten(state).sum().isfinite():  # else all are: one by one takes longer than to decode them
            for key, value in state.items():
                if not value.isfinite().all():
                    raise RejectedError(f"{key} is not finite")
        messages = {key: state.pop(key) for key in list(state) if on_wire(key)}
        return Accepted(state, messages, received_bytes(data, arrived), holds, told)

    def remember(self, round_index: int, told: Mapping[int, StateDict]) -> None:
        """What clients, whose uploads of this round were used, had their state become in it."""
        for client, state in told.items():
            self.dispatch.wire.remember(client, state)
            self.agreed.setdefault(client, {}).update({group_of(key): round_index for key in state})

    def _forget(self, groups: Set[str]) -> None:
        """Clients' states of groups that begin anew do so, too."""
        self.dispatch.wire.forget(groups)
        for agreed in self.agreed.values():
            for group in groups & agreed.keys():
                del agreed[group]

    def _unpacked(self, group: str, part: StateDict, client: int) -> tuple[StateDict, StateDict]:
        """The server's values and the change that a client sent: what its download lost is not lost here.

        With it what the client told of its state.
        """
        wire, specs = self.dispatch.wire, self.dispatch.by_group.get(group, {})
        way = wire.way("upload", client)
        declared = wire.specs(group, specs, way)
        for key in part.keys() | declared.keys():
            if key not in part or key not in declared or declared[key][:2] != (part[key].shape, part[key].dtype):
                raise RejectedError(f"{key} does not fit what is declared of {group}")
        try:
            change = wire.unpack(group, part, specs, way)
            told = wire.told(group, part, specs, way)
        except (UserError, RuntimeError, IndexError, ValueError) as error:  # indices that point nowhere
            raise RejectedError(f"{group} cannot be unpacked: {error}") from error
        rest = {key: value for key, value in part.items() if not on_wire(key)}
        return added(self.state, change) | rest, told

    def _changed(self, group: str, ended: StateDict, client: int) -> StateDict:
        """The same of a group that came as it is; the client's own values, if it was sent the server's."""
        sent = self._sent.get(variant(group, self.dispatch.wire.way("download", client).tier))
        lossy = {key: v for key, v in sent.values.items() if not torch.equal(v, self.state[key])} if sent else {}
        fitting = [key for key, value in lossy.items() if key in ended and ended[key].shape == value.shape]
        return ended | {key: self.state[key] + (ended[key] - lossy[key]) for key in fitting}

    def apply(self, values: Mapping[str, Tensor], aggregated: bool) -> None:
        """Take over new values; the version of a group rises if one of its values changed.

        Args:
            values: by key of the model's online state.
            aggregated: whether they are the clients' aggregate, or the server's own doing.
        """
        self._update(self.state, values, aggregated)

    def say(self, messages: Mapping[str, Tensor]) -> None:
        """Send other messages from now on, by key on the wire."""
        self._update(self.messages, messages, aggregated=False)

    def _update(self, own: StateDict, values: Mapping[str, Tensor], aggregated: bool) -> None:
        changed = {group_of(key) for key, value in values.items() if not torch.equal(own[key], value)}
        own.update({key: value.detach().to("cpu", copy=True) for key, value in values.items()})
        self.dispatch.changed(changed, aggregated)

    def encode(self, groups: Sequence[str], packed: Collection[str] = (), tier: int = 0) -> bytes:
        """Groups in their current versions, some packed; encoded once for all who are to be sent the same.

        A payload that is one client's own is kept for nobody.
        """
        if self.dispatch.wire.personal is not None:
            return encode(self._travelling(groups, packed, tier))
        versions = self.dispatch.versions.current
        key = tuple((variant(group, tier), versions[group], group in packed) for group in groups)
        if key not in self._encoded:
            self._encoded = {
                old: data
                for old, data in self._encoded.items()
                if all(versions[group_of_variant(name)] == version for name, version, _ in old)
            }
            self._encoded[key] = encode(self._travelling(groups, packed, tier))
        return self._encoded[key]

    def _travelling(self, groups: Sequence[str], packed: Collection[str], tier: int) -> StateDict:
        state = select(self.state | self.messages, groups)
        for group in groups:
            if self.dispatch.coded(group, Way("download", tier)):
                sent = self._publish(group, tier)
                state |= sent.values
                if group in packed:
                    state = {key: value for key, value in state.items() if key not in sent.values} | sent.packed
        return state

    def sent(self, group: str, tier: int = 0) -> StateDict:
        """What a client has of a group when it was sent the version that clients of its tier are sent now."""
        values, name = select(self.state, {group}), variant(group, tier)
        if self.dispatch.wire.personal is not None and self.dispatch.coded(group, Way("download", tier)):
            return values | self._publish(group, tier).values
        return values | self._sent[name].values if name in self._sent else values

    def sent_whole(self, client: int) -> StateDict:
        """The model that a client would have if it were sent all of it now."""
        tier = self.dispatch.wire.way("download", client).tier
        groups = [group for group in self.dispatch.groups if not is_message(group)]
        return {key: value for group in groups for key, value in self.sent(group, tier).items()}

    def _publish(self, group: str, tier: int) -> Sent:
        name, versions = variant(group, tier), self.dispatch.versions
        if self.dispatch.wire.personal is not None:
            return self._packed(group, versions.current[group], Way("download", tier))
        version, _ = versions.published.get(name, (versions.current[group], NOTHING))
        if name not in self._sent or self._sent[name].version != version:
            self._sent[name] = self._packed(group, version, Way("download", tier))
        return self._sent[name]

    def _packed(self, group: str, version: int, way: Way) -> Sent:
        """A version that clients are sent from now on. What its form loses is in the change to the next one."""
        wire, specs = self.dispatch.wire, self.dispatch.by_group[group]
        base = self.dispatch.base(group, way.tier)
        values = {key: self.state[key] for key in self.dispatch.coded(group, way)}
        if base is None:
            return Sent(version, values, {})
        before = self._sent[variant(group, way.tier)].values if base != NOTHING else {}
        packed = wire.pack(group, subtracted(values, before), specs, way, version)
        received = added(before, wire.unpack(group, packed, specs, way))
        sent = Sent(version, received, packed)
        self._take_over(group, sent)
        return sent

    def _take_over(self, group: str, sent: Sent) -> None:
        """A finished group has no next version to make up for a loss: what is trained on top has it as clients."""
        dispatch = self.dispatch
        is_last = dispatch.is_finished(group) and dispatch.versions.current[group] == sent.version
        if is_last and dispatch.wire.is_common:
            self.state |= sent.values

    def known(self) -> dict[str, tuple[int, StateDict]]:
        """Variant of a group -> version and values of what some client may hold."""
        dispatch, known = self.dispatch, dict[str, tuple[int, StateDict]]()
        for group in dispatch.groups:
            values = select(self.state | self.messages, {group})
            for tier in range(dispatch.wire.num_tiers):
                sent = self._sent.get(variant(group, tier))
                if sent is not None:
                    known[variant(group, tier)] = (sent.version, values | sent.values)
                elif dispatch.versions.held_by_anyone(group) and dispatch.wire.is_exact(
                    group, Way("download", tier)
                ):
                    known[variant(group, tier)] = (dispatch.versions.current[group], values)
        return known

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
        sent, packed = (  # copies: what was sent may be the state's own tensors
            {
                f"{kind}{name}/{key}": value.clone(memory_format=torch.contiguous_format)
                for name, one in self._sent.items()
                for key, value in getattr(one, part).items()
            }
            for kind, part in ((SENT, "values"), (PACKED, "packed"))
        )
        said = {f"{SAID}{key}": value.contiguous() for key, value in self.messages.items()}
        own = {
            f"{OWN}{client}/{key}": value.contiguous()
            for client, state in self.dispatch.wire.states.items()
            for key, value in state.items()
        }
        agreed = {str(client): groups for client, groups in self.agreed.items()}
        facts = {"versions": versions.facts(), **({"agreed": agreed} if agreed else {})}
        return facts, {**values, **held, **memory, **sent, **packed, **said, **own}

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from a snapshot, in a stage that the dispatch knows."""
        held = {key.removeprefix(HELD): v.numpy() for key, v in tensors.items() if key.startswith(HELD)}
        self.dispatch.versions.restore(facts["versions"], held)
        self.state = {key.removeprefix(STATE): v for key, v in tensors.items() if key.startswith(STATE)}
        self.messages = {key.removeprefix(SAID): v for key, v in tensors.items() if key.startswith(SAID)}
        for key, value in tensors.items():
            if key.startswith(MEMORY):
                plugin, name = key.removeprefix(MEMORY).split("/", 1)
                self.memory.setdefault(plugin, {})[name] = value
            if key.startswith(OWN):
                client, name = key.removeprefix(OWN).split("/", 1)
                self.dispatch.wire.remember(int(client), {name: value})
        self.agreed = {int(client): dict(groups) for client, groups in facts.get("agreed", {}).items()}
        parts: dict[str, dict[str, StateDict]] = {SENT: {}, PACKED: {}}
        for kind, names in parts.items():
            for key, value in tensors.items():
                if key.startswith(kind):
                    name, inner = key.removeprefix(kind).split("/", 1)
                    names.setdefault(name, {})[inner] = value
        published = self.dispatch.versions.published
        self._sent = {
            name: Sent(published[name][0], values, parts[PACKED].get(name, {}))
            for name, values in parts[SENT].items()
        }
