"""The codecs by themselves: their bytes by formula, what they lose, and what they must not."""

from math import ceil
from typing import Any

import pytest
import torch
from torch import Tensor

from fedbench.encoders.tensor_groups import Specs, TensorSpec
from fedbench.errors import UserError
from fedbench.federation import Codec, Way, load_mechanisms
from fedbench.federation.codec import DIRECTIONS
from fedbench.random import generator

SHAPES = {"matrix": (12, 20), "kernel": (8, 3, 3, 3), "bias": (7,)}
SPECS: Specs = {key: TensorSpec(shape, torch.float32, False) for key, shape in SHAPES.items()}
SIZE = 240 + 216 + 7


def codec(name: str, **fields: Any) -> Codec:
    (one,) = load_mechanisms({"name": "fedssl", name: fields})
    assert isinstance(one, Codec)
    return one


def num_bytes(specs: Specs) -> int:
    return sum(spec.nbytes for spec in specs.values())


def through(one: Codec, values: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    specs = {key: TensorSpec(tuple(value.shape), value.dtype, False) for key, value in values.items()}
    return one.unpack(one.pack(values, Way("upload"), generator(seed)), specs, Way("upload"))


def random_values(seed: int = 0) -> dict[str, Tensor]:
    draw = generator(seed, "values")
    return {key: torch.randn(shape, generator=draw) for key, shape in SHAPES.items()}


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_quantised_bytes_are_the_bits_of_all_numbers_and_a_grid_for_each_tensor(bits: int) -> None:
    assert num_bytes(codec("quantise", upload=bits).wire(SPECS, Way("upload"))) == ceil(bits * SIZE / 8) + 3 * 8


@pytest.mark.parametrize(("density", "count"), [(0.1, 47), (0.01, 5), (0.5, 232)])
@pytest.mark.parametrize("name", ["top_k", "random_k"])
def test_sparse_bytes_are_the_values_and_the_smaller_way_to_say_where(
    name: str, density: float, count: int
) -> None:
    """463 entries: a bitmap has 58 bytes, which 15 indices have not yet."""
    assert count == ceil(density * SIZE)
    expected = 4 * count + min(4 * count, ceil(SIZE / 8))
    assert num_bytes(codec(name, upload=density).wire(SPECS, Way("upload"))) == expected


def test_low_rank_bytes_are_those_of_two_thin_matrices_where_that_is_less() -> None:
    specs = codec("low_rank", upload=2).wire(SPECS, Way("upload"))
    assert num_bytes(specs) == 4 * (2 * (12 + 20) + 2 * (8 + 27) + 7)
    assert codec("low_rank", upload=8).wire(SPECS, Way("upload")) == {
        "matrix": SPECS["matrix"],  # 8 (12 + 20) > 240
        "kernel": SPECS["kernel"],
        "bias": SPECS["bias"],
    }


def test_half_precision_is_half() -> None:
    assert num_bytes(codec("cast").wire(SPECS, Way("download"))) == 2 * SIZE


def test_directions_have_fields_of_their_own() -> None:
    one = codec("quantise", download=1, upload=8)
    assert num_bytes(one.wire(SPECS, Way("download"))) < num_bytes(one.wire(SPECS, Way("upload")))
    assert [codec("top_k", download=1.0).works(Way(way)) for way in DIRECTIONS] == [False, True]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_stochastic_rounding_is_right_on_average_and_off_by_a_step_at_most(bits: int) -> None:
    values = {"w": torch.linspace(-1, 2, 50)}
    step, one, times = 3 / (2**bits - 1), codec("quantise", upload=bits), 1000
    draws = torch.stack([through(one, values, seed)["w"] for seed in range(times)])
    assert (draws - values["w"]).abs().max() <= step * (1 + 1e-5)
    assert draws[:, [0, -1]].sub(torch.tensor([-1.0, 2.0])).abs().max() == 0  # the ends of the grid
    spread = step / 2 / times**0.5  # of the mean, at most: a coin between two neighbours
    assert (draws.mean(0) - values["w"]).abs().max() < 5 * spread


def test_each_tensor_has_a_grid_of_its_own() -> None:
    back = through(
        codec("quantise", upload=1), {"small": torch.tensor([0.0, 1e-3]), "large": torch.tensor([0.0, 9])}
    )
    assert back["small"].tolist() == pytest.approx([0, 1e-3])
    assert back["large"].tolist() == [0, 9]


def test_top_k_keeps_the_largest_over_the_whole_group() -> None:
    back = through(codec("top_k", upload=0.5), {"a": torch.tensor([[1.0, -5.0]]), "b": torch.tensor([0.5, 4.0])})
    assert {key: value.tolist() for key, value in back.items()} == {"a": [[0, -5]], "b": [0, 4]}


def test_random_k_keeps_each_entry_as_often_as_any_other() -> None:
    values, one = {"w": torch.arange(1.0, 21)}, codec("random_k", upload=0.25)
    kept = torch.stack([through(one, values, seed)["w"] for seed in range(1000)])
    assert set((kept != 0).sum(1).tolist()) == {5}
    assert torch.equal(kept.amax(0), values["w"])
    assert ((kept != 0).float().mean(0) - 0.25).abs().max() < 0.07  # five standard deviations


def test_a_matrix_of_low_rank_arrives_whole_and_any_other_nearly_at_its_best() -> None:
    draw = generator(0)
    low = torch.randn(12, 2, generator=draw) @ torch.randn(2, 20, generator=draw)
    assert torch.allclose(through(codec("low_rank"), {"w": low})["w"], low, atol=1e-5)
    full = torch.randn(12, 20, generator=draw)
    best = torch.linalg.svdvals(full)[2:].square().sum().sqrt()
    lost = (through(codec("low_rank", iterations=20), {"w": full})["w"] - full).norm()
    assert best <= lost < 1.01 * best
    assert (through(codec("low_rank", iterations=1), {"w": full})["w"] - full).norm() > 1.01 * best


def test_half_precision_rounds_and_never_makes_infinity() -> None:
    values = {"w": torch.tensor([1.0, 1.0001, -1e9])}
    assert through(codec("cast"), values)["w"].tolist() == [1, 1, -65504]
    assert through(codec("cast", upload="bf16"), values)["w"].tolist()[:2] == [1, 1]


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["quantise", "cast", "top_k", "random_k", "low_rank"])
def test_what_is_not_finite_is_seen_where_it_arrives(name: str, wrong: float) -> None:
    """So that the server rejects the update of a client whose training went wrong."""
    values = random_values()
    values["matrix"][3, 4] = wrong
    assert not all(value.isfinite().all() for value in through(codec(name), values).values())


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("quantise", {"upload": 3}, "strategy.quantise.upload"),
        ("top_k", {"download": 0}, "strategy.top_k.download"),
        ("random_k", {"upload": 1.5}, "strategy.random_k.upload"),
        ("low_rank", {"upload": -1}, "strategy.low_rank.upload"),
        ("cast", {"upload": "int8"}, "strategy.cast.upload"),
        ("top_k", {"download_of": "nothing"}, "strategy.top_k.download_of"),
    ],
)
def test_a_wrong_field_is_told(name: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        codec(name, **fields)
