from collections import Counter
from dataclasses import replace

import pytest
import torch

from fedbench.config import load_config
from fedbench.evaluation import Candidate
from fedbench.evaluation.linear import few_label, few_labels, linear

UNEVEN = torch.tensor([0] * 700 + [1] * 270 + [2] * 30)


@pytest.mark.parametrize(
    ("percent", "expected"), [(1, {0: 3, 1: 3, 2: 3}), (10, {0: 33, 1: 33, 2: 30}), (100, {0: 333, 1: 270, 2: 30})]
)
def test_every_class_gives_the_same_number_or_all_it_has(percent: int, expected: dict[int, int]) -> None:
    """1,000 labels of three classes: 1 % is 10 / 3 of each, 10 % is 100 / 3."""
    chosen = few_labels(UNEVEN, 3, percent, seed=0)
    assert Counter(UNEVEN[chosen].tolist()) == expected
    assert len(set(chosen.tolist())) == len(chosen)


def test_a_class_gives_at_least_one() -> None:
    """Ten labels of three classes: 1 % is a tenth of a label."""
    few = UNEVEN[[0, 1, 2, 3, 4, 5, 6, 700, 701, 970]]
    assert Counter(few[few_labels(few, 3, 1, seed=0)].tolist()) == {0: 1, 1: 1, 2: 1}


def test_the_seed_draws_and_a_percent_is_a_part_of_ten() -> None:
    one, ten, other = (set(few_labels(UNEVEN, 3, p, s).tolist()) for p, s in ((1, 0), (10, 0), (1, 1)))
    assert one < ten
    assert one != other


def test_a_classifier_of_few_labels_sees_no_others(candidate: Candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    """All other labels are exchanged behind its back: it predicts the same, and `linear` does not."""
    config = load_config({"probe": {"epochs": 3}})
    chosen = few_labels(candidate.fit_labels, 3, 10, config.seed)
    monkeypatch.setattr("fedbench.evaluation.linear.few_labels", lambda *_: chosen)
    wrong = (candidate.fit_labels + 1) % 3
    wrong[chosen] = candidate.fit_labels[chosen]
    misled = replace(candidate, fit_labels=wrong)
    assert torch.equal(few_label(candidate, config, 10), few_label(misled, config, 10))
    assert not torch.equal(linear(candidate, config), linear(misled, config))
