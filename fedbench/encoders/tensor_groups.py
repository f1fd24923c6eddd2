"""Tensor groups, and which keys of a model's state belong to which: the one place that takes a key apart.

Versions, payloads and the ledger speak of groups: `stem`, `block_1` .. `block_S`, `shared` (what several blocks
use), `norm`, `reshape` (only while a ResNet is shorter than full) and `heads`. Weights that a transform leaves as
they were given are in groups of their own, `given_stem`, `given_block_1` ..., which nobody trains. Blocks are
numbered from 0 in code, and from 1 in the name of a group.
"""

from collections.abc import Iterable, Mapping
from math import prod
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")

StateDict = dict[str, Tensor]
HEADS = "heads"
ENVELOPE = "envelope"  # stands for a group where bytes belong to a payload as a whole
ENCODER = "encoder."  # how its keys begin in a model's state
BLOCKS = f"{ENCODER}blocks."
GIVEN = "given"  # the module in a key whose weights are given
TARGET = "target_"  # how the target branch's keys begin, before the online branch's key
TIER = "@"  # stands between a group and the tier of clients whose variant of it is meant
MESSAGE = "."  # stands between the sender of a message and the group of the model that it belongs to
ALL = "all"  # stands for that group where a message belongs to none
PACKED = "/"  # stands between group and name in what a codec made of a group


class TensorSpec(NamedTuple):
    """A tensor without its values.

    Attributes:
        direction: the one in which it travels; None: both.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    is_buffer: bool
    direction: Literal["download", "upload"] | None = None

    @property
    def numel(self) -> int:
        """Number of its values."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return self.numel * self.dtype.itemsize


Specs = Mapping[str, TensorSpec]


def travelling(specs: Specs, direction: str) -> dict[str, TensorSpec]:
    """Those that travel in a direction."""
    return {key: spec for key, spec in specs.items() if spec.direction in (None, direction)}


def block_group(block: int) -> str:
    """The group of a block, 0-based: 3 -> `block_4`."""
    return f"block_{block + 1}"


def block_groups(blocks: Iterable[int]) -> frozenset[str]:
    """The groups of blocks, 0-based."""
    return frozenset(map(block_group, blocks))


def needed_by(blocks: Iterable[int]) -> frozenset[str]:
    """The groups that nothing but these blocks needs: their own, and what of them is given."""
    own = block_groups(blocks)
    return own | {f"{GIVEN}_{group}" for group in own}


def is_given(key: str) -> bool:
    """Whether a key's tensor stays as it was given."""
    return f".{GIVEN}." in key


def is_given_group(group: str) -> bool:
    """Whether a group's tensors stay as they were given."""
    return group.startswith(f"{GIVEN}_")


def is_block(group: str) -> bool:
    """Whether a group is a block's."""
    return group.startswith("block_")


def group_of(key: str) -> str:
    """The tensor group of a key of the online state: `encoder.blocks.3.norm1.weight` -> `block_4`."""
    if on_wire(key):
        return key.partition(PACKED)[0]
    parts = key.split(".")
    if parts[0] != "encoder":
        return HEADS
    part = block_group(int(parts[2])) if parts[1] == "blocks" else parts[1]
    return f"{GIVEN}_{part}" if GIVEN in parts else part


def on_wire(key: str) -> bool:
    """Whether a key is no tensor's of the model, but of what a codec made of a group, or of a message."""
    return PACKED in key


def wire_name(group: str, name: str) -> str:
    """The key of what a codec made of a group and calls `name`: `block_4/indices`."""
    return f"{group}{PACKED}{name}"


def variant(group: str, tier: int) -> str:
    """What clients of a tier are sent of a group; there is one variant where there are no tiers."""
    return f"{group}{TIER}{tier}" if tier else group


def group_of_variant(name: str) -> str:
    """`block_4@2` -> `block_4`."""
    return name.partition(TIER)[0]


def message_group(sender: str, name: str) -> str:
    """The group of a message, of a tensor of the model or of none: `Scaffold.block_4`, `FedCA.all`."""
    return f"{sender}{MESSAGE}{group_of(name) if '.' in name else ALL}"


def message_key(sender: str, name: str) -> str:
    """On the wire: `Scaffold.block_4/encoder.blocks.3.norm1.weight`."""
    return wire_name(message_group(sender, name), name)


def messages_of(sender: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """A sender's messages among `values` by key on the wire, by their names."""
    own = f"{sender}{MESSAGE}"
    return {key.partition(PACKED)[2]: one for key, one in values.items() if on_wire(key) and key.startswith(own)}


def is_message(group: str) -> bool:
    """Whether a group holds what travels beside the model."""
    return MESSAGE in group


def beside(group: str) -> str:
    """The model's group that a message belongs to: `Scaffold.block_4` -> `block_4`; any other group: itself."""
    return group.rpartition(MESSAGE)[2]


def groups_of(keys: Iterable[str]) -> list[str]:
    """The groups of a model's keys, in their order."""
    return list(dict.fromkeys(map(group_of, keys)))


def select(state: Mapping[str, Tensor], groups: Iterable[str]) -> StateDict:
    """The entries of a model's online state that belong to `groups`."""
    wanted = frozenset(groups)
    return {key: value for key, value in state.items() if group_of(key) in wanted}


def by_group(state: Mapping[str, Tensor]) -> dict[str, StateDict]:
    """The entries of a state by group, both in the order in which they come."""
    parts: dict[str, StateDict] = {}
    for key, value in state.items():
        parts.setdefault(group_of(key), {})[key] = value
    return parts


def encoder_part(state: Mapping[str, Tensor]) -> StateDict:
    """The encoder's own state within a model's: `encoder.norm.weight` -> `norm.weight`."""
    return {key.removeprefix(ENCODER): value for key, value in state.items() if key.startswith(ENCODER)}


def is_target(key: str) -> bool:
    """Whether a key of a model's whole state is the target branch's, which never travels."""
    return key.startswith(TARGET)


def online_key(key: str) -> str:
    """The online branch's key for the target branch's: `target_encoder.norm.weight` -> `encoder.norm.weight`."""
    return key.removeprefix(TARGET)


def is_in_block(key: str) -> bool:
    """Whether a key is a block's."""
    return key.startswith(BLOCKS)


def in_block_before(key: str, distance: int) -> str:
    """`encoder.blocks.3.norm1.weight`, 2 -> `encoder.blocks.1.norm1.weight`."""
    number, rest = key.removeprefix(BLOCKS).split(".", 1)
    return f"{BLOCKS}{int(number) - distance}.{rest}"


def in_other_block(key: str, numbers: Mapping[int, int]) -> str:
    """A block's key with its number replaced by that in `numbers`; any other key as it is."""
    if not is_in_block(key):
        return key
    number, rest = key.removeprefix(BLOCKS).split(".", 1)
    return f"{BLOCKS}{numbers[int(number)]}.{rest}"
