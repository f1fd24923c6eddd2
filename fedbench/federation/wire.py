"""What a run's codecs make of tensor groups on their way.

On the wire a packed tensor is called `GROUP/NAME`; what travels as it is has its own key.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fedbench.encoders.tensor_groups import (
    Specs,
    StateDict,
    TensorSpec,
    block_groups,
    group_of,
    is_given_group,
    is_message,
    on_wire,
    wire_name,
)
from fedbench.errors import UserError
from fedbench.federation.codec import Codec, Direction, PersonalCodec, Way
from fedbench.federation.mechanism import Mechanism
from fedbench.random import generator

REMEMBERED = 4096  # forms of groups
FIRST_STATES = 256  # of groups, that are remembered
STATE = "state."  # how the name of a client's state on the wire begins, before the tensor's key
Item = TypeVar("Item", TensorSpec, Tensor)
Form = tuple[tuple[str, TensorSpec], ...]


class Wire:
    """The codecs of a run, in the order in which they pack. Without codecs every group travels as it is.

    Of a block that no client trains any more a mechanism may know a form that loses nothing
    (`Mechanism.codec_of_finished`); it travels in that where no codec packs it.

    Attributes:
        personal: the codec at work whose payloads are each client's own, if there is one.
        states: of it, by client, as far as they are not the first ones: on the server of all clients, in a visit
            of the one client whose visit it is (`of_client`).
    """

    def __init__(self, mechanisms: Sequence[Mechanism] = (), seed: int = 0) -> None:
        """UserError: several codecs have tiers of clients, or payloads that are each client's own."""
        self.seed = seed
        self.codecs = sorted((one for one in mechanisms if isinstance(one, Codec)), key=lambda codec: codec.order)
        tiered = [codec for codec in self.codecs if codec.num_tiers > 1 or isinstance(codec, PersonalCodec)]
        if len(tiered) > 1:
            names = " and ".join(type(codec).__name__ for codec in tiered)
            raise UserError(f"{names} have tiers of clients; allowed: one codec that has")
        self.num_tiers = max((codec.num_tiers for codec in self.codecs), default=1)
        self._of_finished = [
            codec for one in mechanisms for codec in [one.codec_of_finished()] if codec is not None
        ]
        self._finished: frozenset[str] = frozenset()
        own = (codec for codec in self.codecs if isinstance(codec, PersonalCodec) and codec.works(Way("upload")))
        self.personal = next(own, None)
        self.states: dict[int, StateDict] = {}
        self._only: int | None = None  # client whose payloads go over it
        self._forms = lru_cache(REMEMBERED)(self._chain)
        self._flops = lru_cache(REMEMBERED)(self._count)
        self._first = lru_cache(FIRST_STATES)(self._first_state)

    def start_stage(self, finished: Iterable[int]) -> None:
        """From now on no client trains these blocks any more."""
        self._finished = block_groups(finished)

    def way(self, direction: Direction, client: int) -> Way:
        """That of a client's payloads."""
        return Way(direction, client if self.personal is not None else client % self.num_tiers)

    def alike(self, way: Way) -> Way:
        """A way with the same forms: those of personal payloads are any client's."""
        return Way(way.direction) if self.personal is not None else way

    @property
    def is_common(self) -> bool:
        """Whether all clients are sent the same."""
        return self.num_tiers == 1 and self.personal is None

    def of_client(self, client: int, state: StateDict) -> "Wire":
        """The same for one client's payloads alone: where they are personal, another one's cannot be read."""
        own = copy.copy(self)
        own.states, own._only = {client: state}, client
        return own

    def state(self, group: str, specs: Specs, client: int) -> StateDict:
        """What both ends remember of a client for a group, by key; nothing where payloads are not personal."""
        if not self._is_personal(group):
            return {}
        assert self._only in (None, client), f"the state of client {client} in a visit of client {self._only}"
        known = self.states.get(client, {})
        return {key: known.get(key, first) for key, first in self._first(group, _form(specs), client).items()}

    def _with_state(self, group: str, specs: Specs, way: Way) -> Way:
        return Way(way.direction, way.tier, self.state(group, specs, way.tier))

    def remember(self, client: int, state: StateDict) -> None:
        """What a client's state is from now on, as far as it is in `state`."""
        self.states[client] = self.states.get(client, {}) | state

    def forget(self, groups: Collection[str]) -> None:
        """All clients' states of these groups are the first ones again."""
        for client, state in self.states.items():
            self.states[client] = {key: value for key, value in state.items() if group_of(key) not in groups}

    def holds(self, group: str, specs: Specs, client: int) -> StateDict:
        """See `PersonalCodec.holds`."""
        state = self.state(group, specs, client)
        return self.personal.holds(state, _coded(specs)) if self.personal is not None and state else {}

    def told(self, group: str, arrived: Mapping[str, Tensor], specs: Specs, way: Way) -> StateDict:
        """What a client has its state of a group become, of an upload in the declared form.

        ValueError: it cannot be a state.
        """
        state = {key: arrived[name] for key, (name, _) in self._news(group, specs, way).items()}
        if self.personal is not None and state:
            self.personal.check_state(state, _coded(specs))
        return state

    def _news(self, group: str, specs: Specs, way: Way) -> dict[str, tuple[str, Tensor]]:
        """Of the state that travels along: by key, its name on the wire and a tensor of its form."""
        if way.direction == "download" or self.personal is None or not self.personal.changes_state:
            return {}
        first = self._first(group, _form(specs), way.tier) if self._is_personal(group) else {}
        return {key: (wire_name(group, f"{STATE}{key}"), value) for key, value in first.items()}

    def _is_personal(self, group: str) -> bool:
        return self.personal is not None and self.personal in self._at_work(group, Way("upload"))

    def _first_state(self, group: str, form: Form, client: int) -> StateDict:
        assert self.personal is not None
        return self.personal.first_state(dict(form), generator(self.seed, "codec state", group, client))

    @property
    def packs(self) -> bool:
        """Whether anything may ever travel packed."""
        return bool(self.codecs or self._of_finished)

    def sends_changes(self, group: str, way: Way) -> bool:
        """Whether a group is packed on its way down as a change of what a client holds, who therefore keeps it."""
        codecs = self._at_work(group, way)
        return bool(codecs) and all(codec.download_of == "change" for codec in codecs)

    def is_exact(self, group: str, way: Way) -> bool:
        """Whether clients have the server's own values of a group."""
        return not self._lossy(group, way)

    def has_feedback(self, group: str, way: Way) -> bool:
        """Whether clients keep what their uploads of a group lost."""
        return any(codec.error_feedback for codec in self._at_work(group, way))

    def coded(self, group: str, specs: Specs, way: Way) -> Specs:
        """Of a group's tensors, those that codecs work on: parameters in floating point. None if no codec does."""
        return _coded(specs) if self._at_work(group, way) else {}

    def specs(self, group: str, specs: Specs, way: Way) -> Specs:
        """The tensors that travel for a group of these, packed."""
        way = self.alike(way)
        packed = self._forms(group, way, _form(specs))[-1]
        rest = {key: spec for key, spec in specs.items() if key not in _coded(specs)}
        news = {
            name: TensorSpec(tuple(first.shape), first.dtype, False)
            for name, first in self._news(group, specs, way).values()
        }
        return {**{wire_name(group, name): spec for name, spec in packed}, **news, **rest}

    def pack(
        self,
        group: str,
        values: Mapping[str, Tensor],
        specs: Specs,
        way: Way,
        *when: int,
        becomes: Mapping[str, Tensor] | None = None,
    ) -> StateDict:
        """The coded entries of a group in the form in which they travel; `when` names the draw.

        `becomes`: what the client's state changes to with this upload, by key; the rest stays what it is.

        Raises:
            UserError: a codec packs other tensors than it declared.
        """
        draw = generator(self.seed, "codec", way.direction, group, way.tier, *when)
        forms, way = self._forms(group, self.alike(way), _form(specs)), self._with_state(group, specs, way)
        packed = {key: values[key] for key, _ in forms[0]}
        for codec, form in zip(self._at_work(group, way), forms[1:], strict=True):
            floats, rest = _parted(packed)
            packed = rest | codec.pack(floats, way, draw)
            _check(f"{type(codec).__name__}.pack", packed, dict(form))
        changed = {**way.state, **(becomes or {})}
        news = {name: changed[key] for key, (name, _) in self._news(group, specs, way).items()}
        return {wire_name(group, name): value for name, value in packed.items()} | news

    def unpack(self, group: str, arrived: Mapping[str, Tensor], specs: Specs, way: Way) -> StateDict:
        """The coded entries of a group from their form on the wire.

        Raises:
            UserError: a codec makes other tensors of it than those that were packed.
        """
        forms = self._forms(group, self.alike(way), _form(specs))
        values = {name: arrived[wire_name(group, name)] for name, _ in forms[-1]}
        way = self._with_state(group, specs, way)
        for codec, form in zip(reversed(self._at_work(group, way)), reversed(forms[:-1]), strict=True):
            floats, rest = _parted(dict(form))
            packed = {name: value for name, value in values.items() if name not in rest}
            values = {key: values[key] for key in rest} | codec.unpack(packed, floats, way)
            _check(f"{type(codec).__name__}.unpack", values, dict(form))
        return values

    def flops(self, group: str, specs: Specs, way: Way) -> tuple[int, int]:
        """Of packing a group and of unpacking it, found by doing it once."""
        return self._flops(group, self.alike(way), _form(specs))

    def _count(self, group: str, way: Way, form: Form) -> tuple[int, int]:
        specs = dict(form)
        values = {key: torch.zeros(spec.shape, dtype=spec.dtype) for key, spec in specs.items()}
        packing, packed = _counted(partial(self.pack, group, values, specs, way, 0))
        unpacking, _ = _counted(partial(self.unpack, group, packed, specs, way))
        return packing, unpacking

    def _at_work(self, group: str, way: Way) -> list[Codec]:
        codecs = self._lossy(group, way)
        if codecs or group not in self._finished:
            return codecs
        return [codec for codec in self._of_finished if codec.works(way)]

    def _lossy(self, group: str, way: Way) -> list[Codec]:
        """Messages and given weights, which are sent once, travel as they are."""
        if is_message(group) or is_given_group(group):
            return []
        return [codec for codec in self.codecs if codec.works(way) and codec.covers(group)]

    def _chain(self, group: str, way: Way, form: Form) -> list[Form]:
        """What there is before the first codec, between any two, and behind the last one.

        UserError: two codecs call what they make by one name.
        """
        forms = [form]
        for codec in self._at_work(group, way):
            floats, rest = _parted(dict(forms[-1]))
            made = codec.wire(floats, way)
            if both := made.keys() & rest.keys():
                raise UserError(
                    f"{type(codec).__name__} makes {min(both)!r}, as a codec before it does; allowed: one of them"
                )
            forms.append(tuple({**rest, **made}.items()))
        return forms


def is_packed(part: Mapping[str, Tensor]) -> bool:
    """Whether what arrived of a group of the model is in its packed form."""
    return any(on_wire(key) and not is_message(group_of(key)) for key in part)


def subtracted(values: StateDict, before: Mapping[str, Tensor]) -> StateDict:
    """The change from what was before, which may be nothing."""
    return {key: value - before[key] if before else value for key, value in values.items()}


def added(before: Mapping[str, Tensor], change: StateDict) -> StateDict:
    """What becomes of values, which may be nothing, by a change."""
    return {key: before[key] + value if before else value for key, value in change.items()}


def _coded(specs: Specs) -> dict[str, TensorSpec]:
    return {key: spec for key, spec in specs.items() if spec.dtype.is_floating_point and not spec.is_buffer}


def _form(specs: Specs) -> Form:
    return tuple(_coded(specs).items())


def _parted(values: Mapping[str, Item]) -> tuple[dict[str, Item], dict[str, Item]]:
    """What is in floating point, which a codec works on, and what a codec before it made besides."""
    floats = {name: one for name, one in values.items() if one.dtype.is_floating_point}
    return floats, {name: one for name, one in values.items() if name not in floats}


def _check(what: str, values: Mapping[str, Tensor], specs: Specs) -> None:
    for name in sorted(values.keys() | specs.keys()):
        got = f"{tuple(values[name].shape)}, {values[name].dtype}" if name in values else "no such tensor"
        declared = f"{specs[name].shape}, {specs[name].dtype}" if name in specs else "no such tensor"
        if got != declared:
            raise UserError(f"{what} makes {name!r}: {got}; declared: {declared}")


def _counted(work: Callable[[], StateDict]) -> tuple[int, StateDict]:
    with FlopCounterMode(display=False) as counter:
        result = work()
    return counter.get_total_flops(), result
