import torch

from fedbench.encoders.tensor_groups import select
from fedbench.federation.payload import decode, encode

STATE = {
    "encoder.stem.w": torch.linspace(0, 1, 6).reshape(2, 3).T,  # not contiguous
    "encoder.blocks.0.w": torch.tensor([1.5, float("nan"), -0.0]),
    "projection_head.1.num_batches_tracked": torch.tensor(3),
    "prediction_head.w": torch.ones(2, dtype=torch.bfloat16),
}


def test_what_is_decoded_is_what_was_encoded_bit_for_bit() -> None:
    decoded = decode(encode(STATE))
    assert decoded.keys() == STATE.keys()
    for key, value in STATE.items():
        assert decoded[key].dtype == value.dtype
        assert torch.equal(decoded[key].nan_to_num(9), value.nan_to_num(9))


def test_the_bytes_are_the_tensors_and_a_header() -> None:
    values = sum(value.numel() * value.element_size() for value in STATE.values())
    data = encode(STATE)
    header = 8 + int.from_bytes(data[:8], "little")
    assert len(data) == header + values
    assert values == 6 * 4 + 3 * 4 + 8 + 2 * 2


def test_decoded_tensors_share_nothing_with_the_sender() -> None:
    decoded = decode(encode(STATE))
    decoded["prediction_head.w"].zero_()
    assert torch.equal(STATE["prediction_head.w"], torch.ones(2, dtype=torch.bfloat16))


def test_the_same_tensors_give_the_same_bytes_in_any_order() -> None:
    assert encode(STATE) == encode(dict(reversed(STATE.items())))


def test_groups_are_selected_by_name() -> None:
    assert set(select(STATE, {"stem", "heads"})) == set(STATE) - {"encoder.blocks.0.w"}


def test_tensors_come_out_in_the_order_of_their_names() -> None:
    for _ in range(8):
        assert list(decode(encode(STATE))) == sorted(STATE)
