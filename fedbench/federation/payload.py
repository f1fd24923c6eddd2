"""Weights move by payload only: safetensors bytes, counted where they are encoded."""

from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedbench.encoders.tensor_groups import StateDict
from fedbench.errors import UserError, shorten


def encode(state: Mapping[str, Tensor]) -> bytes:
    """Bytes on the wire: the same tensors give the same bytes."""
    return save({key: value.detach().cpu().contiguous() for key, value in state.items()})


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
