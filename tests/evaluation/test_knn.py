import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from fedbench.config import load_config
from fedbench.evaluation import Candidate
from fedbench.evaluation.knn import knn, num_neighbours


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (7, 5.0), (20, 0.5)])
def test_the_vote_is_that_of_scikit_learn(candidate: Candidate, k: int, temperature: float) -> None:
    torch.manual_seed(2)
    fit, test = torch.randn(90, 5), torch.randn(300, 5)  # more than a chunk; hard to tell apart
    candidate.__dict__["features"] = (fit, test)
    oracle = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / temperature))
    expected = oracle.fit(fit.numpy(), candidate.fit_labels.numpy()).predict(test.numpy())
    found = knn(candidate, load_config({"evaluation": {"knn": {"k": k, "temperature": temperature}}}))
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("k", "num_labelled", "num_classes", "expected"),
    [(200, 50_000, 10, 200), (200, 1437, 10, 143), (200, 7, 10, 1), (5, 1437, 10, 5)],
)
def test_no_more_vote_than_a_class_has_on_average(
    k: int, num_labelled: int, num_classes: int, expected: int
) -> None:
    assert num_neighbours(k, num_labelled, num_classes) == expected
