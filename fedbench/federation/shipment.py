"""What travels, declared tensor by tensor before a byte of it exists.

A shipment is declared from names, shapes and types alone. The bytes that are then really encoded and decoded
are counted by others (`payload.encode`, `payload.received_bytes`); the three counts must agree.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch

from fedbench.conventions import ConventionName
from fedbench.encoders.tensor_groups import ENVELOPE, Specs, TensorSpec, group_of, is_block
from fedbench.errors import AccountingError
from fedbench.ssl import SSLMethod

Reason = Literal["round", "hand_over", "catch_up"]
"""Why a tensor travels: every round's exchange, a finished block's delivery ([LW] Algorithm 1, line 14), or
because the client was not there when the others got it."""

# Names of the types in a safetensors header, in the order in which it sorts tensors: widest first.
DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def describe(model: SSLMethod) -> dict[str, TensorSpec]:
    """Every tensor of the model's online state, by key."""
    buffers = {name for name, _ in model.named_buffers()}
    return {
        key: TensorSpec(tuple(value.shape), value.dtype, key in buffers)
        for key, value in model.online_state().items()
    }


class Entry(NamedTuple):
    """A line of the ledger: the tensors of one group and type within one payload.

    `buffer_bytes` is the part of `value_bytes` that is no parameter (BatchNorm's statistics and counter).
    """

    group: str
    dtype: str
    reason: Reason
    value_bytes: int
    buffer_bytes: int
    framing_bytes: int

    def counted(self, convention: ConventionName) -> int:
        """What the line counts for; `fedbench.conventions` has the rules in words."""
        if convention == "step":
            return self.value_bytes + self.framing_bytes
        if self.reason != "round" or self.group in (ENVELOPE, "reshape"):  # [LW]: a temporary layer, thrown away
            return 0
        if convention == "paper-v3" and not is_block(self.group):
            return 0
        return self.value_bytes - self.buffer_bytes


@dataclass(frozen=True)
class Shipment:
    """One payload as declared: which groups, for what reason, how many bytes.

    Attributes:
        pack_flops, unpack_flops: of what codecs do with it, at either end; with error feedback to pack an upload
            has what the client unpacks of it.
    """

    entries: tuple[Entry, ...]
    pack_flops: int = 0
    unpack_flops: int = 0

    @cached_property
    def num_bytes(self) -> int:
        """Length of the payload: values and framing."""
        return sum(entry.value_bytes + entry.framing_bytes for entry in self.entries)

    def counted(self, convention: ConventionName) -> int:
        """What the payload counts for."""
        return sum(entry.counted(convention) for entry in self.entries)

    @cached_property
    def framing_bytes(self) -> int:
        """What is no tensor's value: header, lengths, padding."""
        return sum(entry.framing_bytes for entry in self.entries)

    @cached_property
    def buffer_bytes(self) -> int:
        """Values that are no parameters."""
        return sum(entry.buffer_bytes for entry in self.entries)

    def because(self, reason: Reason) -> int:
        """Bytes of values that travel for that reason."""
        return sum(entry.value_bytes for entry in self.entries if entry.reason == reason)


def declare(specs: Specs, reasons: Mapping[str, Reason]) -> Shipment:
    """The payload of the groups that `reasons` names."""
    chosen = {key: spec for key, spec in specs.items() if group_of(key) in reasons}
    framing = _framing(chosen)
    lines: dict[tuple[str, str], list[int]] = {}
    for key, spec in chosen.items():
        line = lines.setdefault((group_of(key), str(spec.dtype).removeprefix("torch.")), [0, 0, 0])
        line[0] += spec.nbytes
        line[1] += spec.nbytes * spec.is_buffer
        line[2] += framing[key]
    rest = Entry(ENVELOPE, "", "round", 0, 0, framing[ENVELOPE])
    return Shipment(
        (*(Entry(group, dtype, reasons[group], *line) for (group, dtype), line in lines.items()), rest)
    )


def _framing(specs: Specs) -> dict[str, int]:
    """Bytes of the safetensors header by tensor; what belongs to none of them is the envelope's.

    Format: eight bytes of length, then compact JSON padded to a multiple of eight, tensors in the order of
    their types' width and their names.
    """
    order = list(DTYPES)
    offset, framing = 0, {}
    for key, spec in sorted(specs.items(), key=lambda item: (order.index(item[1].dtype), item[0])):
        end = offset + spec.nbytes
        line = {"dtype": DTYPES[spec.dtype], "shape": spec.shape, "data_offsets": [offset, end]}
        text = json.dumps(key, ensure_ascii=False) + ":" + json.dumps(line, separators=(",", ":"))
        framing[key] = len(text.encode())
        offset = end
    header = sum(framing.values()) + max(len(framing) - 1, 0) + 2  # commas, braces
    framing[ENVELOPE] = 8 + header + -header % 8 - sum(framing.values())
    return framing


def compare(what: str, shipment: Shipment, serialised: int, received: int) -> None:
    """Stop the run where the three counts of a payload differ.

    Raises:
        AccountingError: naming the payload and the figures.
    """
    if not shipment.num_bytes == serialised == received:
        raise AccountingError(
            f"{what}: {shipment.num_bytes} bytes were declared, {serialised} serialised, {received} received; "
            "allowed: three equal counts"
        )
