import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, precision_score, recall_score

from fedbench.config import EncoderConfig, ProbeConfig
from fedbench.data import Dataset
from fedbench.data.dataset import Labelled
from fedbench.encoders import build_encoder
from fedbench.evaluation import extract_features
from fedbench.evaluation.candidate import Candidate
from fedbench.evaluation.linear import fit_linear
from fedbench.evaluation.scores import scores


def images(count: int) -> torch.Tensor:
    torch.manual_seed(count)
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8)


def test_features_do_not_depend_on_chunks_or_training_mode() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(width=16, depth=1, heads=2), depth=1).train()
    whole = extract_features(encoder, images(600))
    assert whole.shape == (600, 16)
    torch.testing.assert_close(whole[512:], extract_features(encoder, images(600)[512:]))
    assert not whole.requires_grad


def test_features_of_a_resnet_are_those_of_each_image_alone() -> None:
    """Its BatchNorm uses what it learned, neither the chunk's statistics nor to learn from it."""
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(name="resnet18", depth=4), depth=4).train()
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    whole = extract_features(encoder, images(6))
    torch.testing.assert_close(whole[4:], extract_features(encoder.train(), images(6)[4:]), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in encoder.named_buffers())


def test_features_are_standardised_by_those_to_learn_from(candidate: Candidate) -> None:
    torch.manual_seed(5)
    fit, test = 3 * torch.randn(90, 4) + 7, torch.randn(30, 4) - 2
    candidate.__dict__["features"] = (fit, test)
    mean, deviation = fit.numpy().mean(axis=0), fit.numpy().std(axis=0, ddof=1)
    for found, features in zip(candidate.standardised_features, (fit, test), strict=True):
        np.testing.assert_allclose(found, (features.numpy() - mean) / deviation, rtol=1e-4, atol=1e-5)


def test_the_seed_shuffles_the_batches_of_the_probe() -> None:
    torch.manual_seed(6)
    features, labels = torch.randn(40, 5), torch.randint(0, 3, (40,))
    config = ProbeConfig(epochs=1, batch_size=10)
    one, again, other = (fit_linear(features, labels, 3, config, seed).weight for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_the_probe_reaches_the_optimum_of_softmax_regression() -> None:
    torch.manual_seed(3)
    features, labels = torch.randn(200, 6), torch.randint(0, 3, (200,))
    features[:, 0] += labels
    ours = fit_linear(features, labels, 3, ProbeConfig(epochs=200), seed=0)
    reference = LogisticRegression(C=1e9, max_iter=5000).fit(features, labels)
    expected = torch.from_numpy(reference.predict_log_proba(features)).float()
    loss, optimum = (
        torch.nn.functional.nll_loss(log, labels).item() for log in (ours(features).log_softmax(1), expected)
    )
    assert optimum <= loss < optimum + 2e-3


def test_scores_are_those_of_scikit_learn() -> None:
    torch.manual_seed(4)
    logits, labels = torch.randn(50, 4), torch.randint(0, 4, (50,))
    predicted = logits.argmax(1)
    macro = {"average": "macro", "zero_division": 0}
    figures = scores(predicted, labels, 4)
    assert figures["top1"] == pytest.approx((predicted == labels).float().mean().item())
    assert figures["per_class_mean"] == pytest.approx(recall_score(labels, predicted, **macro))
    assert figures["macro_precision"] == pytest.approx(precision_score(labels, predicted, **macro))
    assert figures["macro_recall"] == pytest.approx(recall_score(labels, predicted, **macro))
    assert figures["macro_f1"] == pytest.approx(f1_score(labels, predicted, **macro))


def test_a_classifier_learns_from_the_downstream_part_where_the_clients_images_are_not_for_it() -> None:
    train, downstream, test = images(40), Labelled(images(30), torch.arange(30) % 2), images(20)
    encoder = build_encoder(EncoderConfig(width=16, depth=1, heads=2), depth=1)
    unlabelled = Dataset("d", train, torch.full((40,), -1), test, torch.arange(20) % 2, ("a", "b"), downstream)
    candidate = Candidate.on(encoder, unlabelled)
    assert torch.equal(candidate.fit_images, downstream.images)
    assert torch.equal(candidate.fit_labels, downstream.labels)
