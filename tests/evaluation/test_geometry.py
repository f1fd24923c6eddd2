"""How features lie, against naive loops over pairs."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fedbench.config import AugmentationConfig
from fedbench.data import build_views
from fedbench.evaluation import Candidate, describe_features, extract_features
from fedbench.evaluation.geometry import alignment, uniformity
from fedbench.random import generator

VIEWS = build_views(AugmentationConfig(), 8)


def squared_distance(one: Tensor, other: Tensor) -> float:
    """Of the two features, made one long."""
    (a, b) = ([value / math.sqrt(sum(v * v for v in z)) for value in z] for z in (one.tolist(), other.tolist()))
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


@pytest.fixture
def features() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    first = torch.randn(9, 4, generator=draw) * torch.tensor([1.0, 3.0, 0.2, 2.0]) + 1
    return first, first + torch.randn(9, 4, generator=draw)


def test_alignment_is_the_mean_over_pairs_of_views(features: tuple[Tensor, Tensor]) -> None:
    pairs = [squared_distance(one, other) for one, other in zip(*features, strict=True)]
    assert alignment(*features) == pytest.approx(sum(pairs) / 9, rel=1e-5)


def test_uniformity_is_that_of_a_double_loop(features: tuple[Tensor, Tensor]) -> None:
    first, _ = features
    potentials = [
        math.exp(-2 * squared_distance(first[i], first[j])) for i in range(9) for j in range(9) if i != j
    ]
    assert uniformity(first) == pytest.approx(math.log(sum(potentials) / 72), rel=1e-5)


def test_features_that_are_all_alike_are_aligned_and_not_uniform() -> None:
    alike = torch.tensor([[3.0, 4.0]]).expand(5, 2)
    assert alignment(alike, 7 * alike) == pytest.approx(0.0, abs=1e-6)
    assert uniformity(alike) == pytest.approx(0.0, abs=1e-6)
    assert alignment(alike, -alike) == pytest.approx(4.0)


def rank(features_ND: Tensor) -> float:
    singular = np.linalg.svd((features_ND - features_ND.mean(0)).double().numpy(), compute_uv=False)
    shares = singular / singular.sum()
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


@pytest.mark.parametrize("seed", [0, 1])
def test_views_are_compared_with_their_partner_and_images_as_they_are(candidate: Candidate, seed: int) -> None:
    encoder, images = candidate.encoder.eval(), candidate.fit_images
    figures = describe_features(encoder, images, VIEWS, seed)
    order = torch.randperm(90, generator=generator(seed, "evaluation images"))
    with torch.no_grad():
        views = VIEWS(images[order], generator(seed, "evaluation views"))
        pairs = zip(*(encoder(view) for view in views), strict=True)
    expected = sum(squared_distance(one, other) for one, other in pairs) / 90
    assert figures["alignment"] == pytest.approx(expected, rel=1e-4)
    plain = extract_features(encoder, images)
    assert figures["uniformity"] == pytest.approx(uniformity(plain), rel=1e-4)
    assert figures["effective_rank"] == pytest.approx(rank(plain), rel=1e-3)


def test_encoder_and_global_generator_stay_as_they_were(candidate: Candidate) -> None:
    before = {key: value.clone() for key, value in candidate.encoder.state_dict().items()}
    state = torch.get_rng_state()
    describe_features(candidate.encoder, candidate.fit_images, VIEWS, 0)
    assert all(torch.equal(before[key], value) for key, value in candidate.encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_no_more_images_are_looked_at_than_the_limit(candidate: Candidate) -> None:
    seen: list[int] = []

    def counted(images: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        seen.append(len(images))
        return VIEWS(images, draw)

    describe_features(candidate.encoder, candidate.fit_images.repeat(30, 1, 1, 1), counted, seed=0)
    assert sum(seen) == 2000
