"""Weights move by payload only: safetensors bytes, counted where they are encoded."""

import json
from collections.abc import Mapping
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedbench.encoders.tensor_groups import StateDict
from fedbench.errors import UserError, shorten

LAYOUTS = 64  # that are remembered


def encode(state: Mapping[str, Tensor]) -> bytes:
    """Bytes on the wire: the same tensors give the same bytes."""
    frame = _frame(tuple((key, value.dtype, value.shape) for key, value in state.items()))
    runs = [torch.cat([state[key].detach().reshape(-1) for key in keys]) for keys in frame.runs]
    return b"".join([frame.header, *(run.cpu().view(torch.uint8).numpy().data for run in runs)])


class Frame(NamedTuple):
    """What is not values: the header, and which keys' values follow, those of one type together."""

    header: bytes
    runs: list[list[str]]


@lru_cache(LAYOUTS)
def _frame(layout: tuple[tuple[str, torch.dtype, torch.Size], ...]) -> Frame:
    """As safetensors makes it, which takes as long as a small client's whole step."""
    data = save({key: torch.zeros(shape, dtype=dtype) for key, dtype, shape in layout})
    begin = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:begin])
    order = sorted(entries, key=lambda key: entries[key]["data_offsets"])
    return Frame(data[:begin], [list(keys) for _, keys in groupby(order, key=lambda key: entries[key]["dtype"])])


def decode(data: bytes) -> StateDict:
    """Tensors from bytes, in the order of their names; copies that share nothing with the sender's.

    UserError: the bytes are no payload.
    """
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:  # a broken header, a type torch lacks
        raise UserError(f"a payload of {len(data):,} bytes cannot be read ({shorten(str(error))})") from error
    return dict(sorted(tensors.items()))  # safetensors' own order differs from call to call


def received_bytes(data: bytes, state: Mapping[str, Tensor]) -> int:
    """What a receiver counts: the header's length as it stands in the payload, and the values that came out."""
    return 8 + int.from_bytes(data[:8], "little") + sum(value.nbytes for value in state.values())
