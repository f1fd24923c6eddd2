"""What a run's codecs make of tensor groups on their way.

On the wire a packed tensor is called `GROUP/NAME`; what travels as it is has its own key.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fedbench.encoders.tensor_groups import StateDict, on_wire, wire_name
from fedbench.errors import UserError
from fedbench.federation.codec import Codec, Direction
from fedbench.federation.mechanism import Mechanism
from fedbench.federation.shipment import Specs, TensorSpec
from fedbench.random import generator

REMEMBERED = 4096  # forms of groups
Item = TypeVar("Item", TensorSpec, Tensor)


class Wire:
    """The codecs of a run, in the order in which they pack. Without codecs every group travels as it is."""

    def __init__(self, mechanisms: Sequence[Mechanism] = (), seed: int = 0) -> None:
        self.seed = seed
        codecs = sorted((one for one in mechanisms if isinstance(one, Codec)), key=lambda codec: codec.order)
        self.codecs: dict[Direction, list[Codec]] = {
            "download": [codec for codec in codecs if codec.works("download")],
            "upload": [codec for codec in codecs if codec.works("upload")],
        }
        self._forms = lru_cache(REMEMBERED)(self._chain)
        self._flops = lru_cache(REMEMBERED)(self._count)

    def packs(self, direction: Direction) -> bool:
        """Whether anything is packed in this direction."""
        return bool(self.codecs[direction])

    @property
    def sends_changes(self) -> bool:
        """Whether a download is packed as a change of what a client holds, who therefore keeps it."""
        codecs = self.codecs["download"]
        return bool(codecs) and all(codec.download_of == "change" for codec in codecs)

    @property
    def has_feedback(self) -> bool:
        """Whether clients keep what their uploads lost."""
        return any(codec.error_feedback for codec in self.codecs["upload"])

    def specs(self, group: str, specs: Specs, direction: Direction) -> Specs:
        """The tensors that travel for a group of these."""
        packed = self._forms(direction, tuple(coded(specs).items()))[-1]
        return {**{wire_name(group, name): spec for name, spec in packed}, **as_they_are(specs)}

    def pack(
        self, group: str, values: Mapping[str, Tensor], specs: Specs, direction: Direction, *when: int
    ) -> StateDict:
        """The coded entries of a group in the form in which they travel; `when` names the draw.

        Raises:
            UserError: a codec packs other tensors than it declared.
        """
        draw = generator(self.seed, "codec", direction, group, *when)
        forms = self._forms(direction, tuple(coded(specs).items()))
        packed = {key: values[key] for key in coded(specs)}
        for codec, form in zip(self.codecs[direction], forms[1:], strict=True):
            floats, rest = _parted(packed)
            packed = rest | codec.pack(floats, direction, draw)
            _check(f"{type(codec).__name__}.pack", packed, dict(form))
        return {wire_name(group, name): value for name, value in packed.items()}

    def unpack(self, group: str, arrived: Mapping[str, Tensor], specs: Specs, direction: Direction) -> StateDict:
        """The coded entries of a group from their form on the wire.

        Raises:
            UserError: a codec makes other tensors of it than those that were packed.
        """
        forms = self._forms(direction, tuple(coded(specs).items()))
        values = {name: arrived[wire_name(group, name)] for name, _ in forms[-1]}
        for codec, form in zip(reversed(self.codecs[direction]), reversed(forms[:-1]), strict=True):
            floats, rest = _parted(dict(form))
            packed = {name: value for name, value in values.items() if name not in rest}
            values = {key: values[key] for key in rest} | codec.unpack(packed, floats, direction)
            _check(f"{type(codec).__name__}.unpack", values, dict(form))
        return values

    def flops(self, group: str, specs: Specs, direction: Direction) -> tuple[int, int]:
        """Of packing a group and of unpacking it, found by doing it once for all groups of these shapes."""
        if not self.packs(direction) or not coded(specs):
            return 0, 0
        return self._flops(direction, tuple(spec for _, spec in sorted(coded(specs).items())))

    def _count(self, direction: Direction, shapes: tuple[TensorSpec, ...]) -> tuple[int, int]:
        specs = {str(number): spec for number, spec in enumerate(shapes)}
        values = {key: torch.zeros(spec.shape, dtype=spec.dtype) for key, spec in specs.items()}
        packing, packed = _counted(partial(self.pack, "", values, specs, direction, 0))
        unpacking, _ = _counted(partial(self.unpack, "", packed, specs, direction))
        return packing, unpacking

    def _chain(self, direction: Direction, specs: tuple[tuple[str, TensorSpec], ...]) -> list[Any]:
        """What there is before the first codec, between any two, and behind the last one.

        UserError: two codecs call what they make by one name.
        """
        forms = [specs]
        for codec in self.codecs[direction]:
            floats, rest = _parted(dict(forms[-1]))
            made = codec.wire(floats, direction)
            if both := made.keys() & rest.keys():
                raise UserError(
                    f"{type(codec).__name__} makes {min(both)!r}, as a codec before it does; allowed: one of them"
                )
            forms.append(tuple({**rest, **made}.items()))
        return forms


def coded(specs: Specs) -> Specs:
    """Of a group, the tensors that codecs work on: parameters in floating point."""
    return {key: spec for key, spec in specs.items() if spec.dtype.is_floating_point and not spec.is_buffer}


def as_they_are(specs: Specs) -> Specs:
    """The others: BatchNorm's statistics and counter."""
    return {key: spec for key, spec in specs.items() if not (spec.dtype.is_floating_point and not spec.is_buffer)}


def _parted(values: Mapping[str, Item]) -> tuple[dict[str, Item], dict[str, Item]]:
    """What is in floating point, which a codec works on, and what a codec before it made besides."""
    floats = {name: one for name, one in values.items() if one.dtype.is_floating_point}
    return floats, {name: one for name, one in values.items() if name not in floats}


def subtracted(values: StateDict, before: Mapping[str, Tensor]) -> StateDict:
    """The change from what was before, which may be nothing."""
    return {key: value - before[key] if before else value for key, value in values.items()}


def added(before: Mapping[str, Tensor], change: StateDict) -> StateDict:
    """What becomes of values, which may be nothing, by a change."""
    return {key: before[key] + value if before else value for key, value in change.items()}


def is_packed(part: Mapping[str, Tensor]) -> bool:
    """Whether what arrived of a group is in its packed form."""
    return any(map(on_wire, part))


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
