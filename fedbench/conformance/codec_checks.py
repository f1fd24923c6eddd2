"""What a look at a codec alone shows: a size that is not the declared one, a lost tensor, two readers' two values.

A check takes a codec and a way on which it works, and returns what is wrong, or None.
"""

from collections.abc import Callable

import torch

from fedbench.conformance.checks import Finding, differing, short
from fedbench.encoders.tensor_groups import Specs, StateDict, TensorSpec
from fedbench.errors import UserError
from fedbench.federation.codec import Codec, Way
from fedbench.federation.wire import Wire
from fedbench.random import generator

GROUP = "block_1"
SHAPES = {"matrix": (24, 16), "kernel": (8, 4, 3, 3), "bias": (24,), "scale": (1,)}
SPECS: Specs = {key: TensorSpec(shape, torch.float32, False) for key, shape in SHAPES.items()}


def values(seed: int, scale: float = 1.0) -> StateDict:
    """A group's values by chance, or, with scale 0, a change that is none."""
    draw = generator(seed, "check")
    return {key: scale * torch.randn(spec.shape, generator=draw) for key, spec in SPECS.items()}


def _packed(codec: Codec, way: Way, state: StateDict, draw: int = 0) -> StateDict:
    return Wire([codec]).pack(GROUP, state, SPECS, way, draw)


def sizes_follow_from_shapes(codec: Codec, way: Way) -> Finding | None:
    """What is packed is what was declared, whatever the values; a declared size takes no values to find."""
    for state in (values(0), values(1, 1e6), values(2, 0)):
        try:
            _packed(codec, way, state)
        except UserError as error:
            return Finding("tensors as `wire` declares them", str(error), "pack, wire")
    return None


def nothing_is_lost(codec: Codec, way: Way) -> Finding | None:
    """Every tensor of a group comes out again, in its shape and type."""
    try:
        Wire([codec]).unpack(GROUP, _packed(codec, way, values(0)), SPECS, way)
    except UserError as error:
        return Finding("all tensors of the group, as they were declared", str(error), "unpack")
    return None


def every_reader_gets_the_same(codec: Codec, way: Way) -> Finding | None:
    """What comes out follows from the bytes alone: not from who reads, how often, or what was packed meanwhile."""
    wire, packed = Wire([codec]), _packed(codec, way, values(0))
    first = wire.unpack(GROUP, packed, SPECS, way)
    first = {key: value.clone() for key, value in first.items()}
    _packed(codec, way, values(1))
    torch.rand(3)
    wrong = differing(first, wire.unpack(GROUP, packed, SPECS, way), SPECS)
    return Finding("every reader gets the same values", f"differ: {short(wrong)}", "unpack") if wrong else None


def chance_is_only_the_draw(codec: Codec, way: Way) -> Finding | None:
    """The same values and the same draw give the same bytes: after a kill, and in any process."""
    first = _packed(codec, way, values(0))
    torch.rand(3)
    wrong = differing(first, _packed(codec, way, values(0)), first)
    return Finding("the same draw, the same bytes", f"differ: {short(wrong)}", "pack: draw") if wrong else None


def what_is_packed_stays(codec: Codec, way: Way) -> Finding | None:
    """Packing and unpacking read what they are given, and leave it as it is."""
    state, before = values(0), values(0)
    packed = _packed(codec, way, state)
    kept = {key: value.clone() for key, value in packed.items()}
    Wire([codec]).unpack(GROUP, packed, SPECS, way)
    wrong = differing(before, state, before) + differing(kept, packed, kept)
    return Finding("values that nobody changes", f"changed: {short(wrong)}", "pack, unpack") if wrong else None


def no_change_stays_none(codec: Codec, way: Way) -> Finding | None:
    """A group that did not change arrives unchanged."""
    back = Wire([codec]).unpack(GROUP, _packed(codec, way, values(0, 0)), SPECS, way)
    wrong = [key for key, value in back.items() if value.any()]
    return Finding("zeros come back as zeros", f"not zero: {short(wrong)}", "pack, unpack") if wrong else None


CODEC_CHECKS: dict[str, Callable[[Codec, Way], Finding | None]] = {
    "sizes follow from shapes": sizes_follow_from_shapes,
    "nothing is lost": nothing_is_lost,
    "every reader gets the same": every_reader_gets_the_same,
    "chance is only the draw": chance_is_only_the_draw,
    "what is packed stays": what_is_packed_stays,
    "no change stays none": no_change_stays_none,
}
