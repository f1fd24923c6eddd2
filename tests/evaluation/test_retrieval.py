"""R@1 between two towers, by naive loops."""

from collections.abc import Callable

import pytest
import torch

from fedbench.config import Config, load_config
from fedbench.data import Dataset
from fedbench.encoders import Encoder, build_encoder
from fedbench.errors import UserError
from fedbench.evaluation import evaluate, extract_features
from fedbench.federation.experiment import check

SEED = 7  # with which the directions differ


def towers(second: str = "edges") -> tuple[Encoder, Config]:
    tree = {"width": 16, "depth": 1, "heads": 2, "transforms": [{"name": "two_towers", "second": second}]}
    config = load_config({"encoder": tree})
    torch.manual_seed(SEED)
    return build_encoder(config.encoder, 1), config


def found(queries: torch.Tensor, images: torch.Tensor) -> float:
    """Share of queries whose nearest image has their own number."""
    hits = 0
    for number, query in enumerate(queries):
        similar = [(query @ one / (query.norm() * one.norm())).item() for one in images]
        hits += similar.index(max(similar)) == number
    return hits / len(queries)


def test_recall_is_that_of_a_double_loop_in_both_directions(dataset: Dataset) -> None:
    encoder, config = towers()
    figures = evaluate(encoder, dataset, config, ["retrieval"])
    first, second = extract_features(encoder, dataset.test_images).chunk(2, dim=1)
    forth, back = found(first, second), found(second, first)
    assert figures == {
        "retrieval_top1": pytest.approx((forth + back) / 2),
        "retrieval_first_to_second": pytest.approx(forth),
        "retrieval_second_to_first": pytest.approx(back),
    }
    assert forth != back
    assert 0 < forth + back < 2


def test_equal_towers_on_equal_renderings_find_every_image(dataset: Dataset) -> None:
    encoder, config = towers("colours")
    assert evaluate(encoder, dataset, config, ["retrieval"])["retrieval_top1"] == 1.0


def test_retrieval_with_one_tower_is_refused_before_anything_is_trained(tiny: Callable[..., Config]) -> None:
    with pytest.raises(UserError, match="retrieval is between two towers, and the encoder has one; allowed: with"):
        check(tiny(evaluation={"protocols": ["linear", "retrieval"]}))
    check(tiny({"encoder": {"transforms": ["two_towers"]}}, evaluation={"protocols": ["linear", "retrieval"]}))
