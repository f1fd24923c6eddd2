"""What is declared from names and shapes alone is what safetensors writes."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedbench.encoders.tensor_groups import ENVELOPE, TensorSpec, group_of
from fedbench.federation.payload import decode as decode_payload
from fedbench.federation.payload import encode, received_bytes
from fedbench.federation.shipment import DTYPES, declare

NAMES = st.sampled_from(
    [
        "encoder.stem.w",
        "encoder.blocks.0.w",
        "encoder.blocks.11.norm.bias",
        "projection_head.ä",
        "encoder.norm.w",
        "p",
    ]
)
TENSORS = st.dictionaries(
    NAMES, st.tuples(st.lists(st.integers(0, 12), max_size=3), st.sampled_from(list(DTYPES))), min_size=1
)


@given(TENSORS)
def test_declared_bytes_are_the_serialised_ones(tensors: dict[str, tuple[list[int], torch.dtype]]) -> None:
    state = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in tensors.items()}
    specs = {name: TensorSpec(tuple(value.shape), value.dtype, False) for name, value in state.items()}
    data = encode(state)
    shipment = declare(specs, {group_of(name): "round" for name in state})
    assert shipment.num_bytes == len(data) == received_bytes(data, decode_payload(data))
    assert sum(entry.value_bytes for entry in shipment.entries) == sum(value.nbytes for value in state.values())


def test_lines_are_by_group_and_type_and_know_buffers() -> None:
    specs = {
        "encoder.blocks.0.w": TensorSpec((2, 3), torch.float32, False),
        "projection_head.w": TensorSpec((4,), torch.float32, False),
        "projection_head.running_mean": TensorSpec((4,), torch.float32, True),
        "projection_head.num_batches_tracked": TensorSpec((), torch.int64, True),
        "encoder.norm.w": TensorSpec((5,), torch.float32, False),
    }
    shipment = declare(specs, {"block_1": "hand_over", "heads": "round"})
    lines = {(entry.group, entry.dtype): entry for entry in shipment.entries}
    assert set(lines) == {("block_1", "float32"), ("heads", "float32"), ("heads", "int64"), (ENVELOPE, "")}
    assert lines["block_1", "float32"][2:5] == ("hand_over", 24, 0)
    assert lines["heads", "float32"][2:5] == ("round", 32, 16)
    assert lines["heads", "int64"][2:5] == ("round", 8, 8)
    assert shipment.because("hand_over") == 24
    assert shipment.buffer_bytes == 24


def test_an_empty_payload_is_a_header() -> None:
    assert declare({}, {}).num_bytes == len(encode({}))
