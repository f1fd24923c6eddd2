from dataclasses import replace
from typing import Any

import pytest
import torch

from fedbench.config import Config, EncoderConfig, load_config
from fedbench.encoders import Encoder, build_encoder
from fedbench.evaluation import Candidate, extract_features
from fedbench.evaluation.finetune import finetune


def config(**keys: Any) -> Config:
    return load_config({"evaluation": {"finetune": {"epochs": 5, "warmup_epochs": 2, "batch_size": 32, **keys}}})


def test_it_learns_what_labels_teach(candidate: Candidate) -> None:
    predicted = finetune(candidate, config(epochs=30, lr=3e-3))
    assert (predicted == candidate.test_labels).float().mean() > 0.8


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rate of every step that any AdamW takes."""
    found: list[float] = []

    class Recording(torch.optim.AdamW):
        def step(self, *arguments: Any) -> None:
            found.append(self.param_groups[0]["lr"])
            super().step(*arguments)

    monkeypatch.setattr(torch.optim, "AdamW", Recording)
    return found


def test_the_rate_rises_over_the_warm_up_and_falls_to_zero(candidate: Candidate, rates: list[float]) -> None:
    """90 images in batches of 32 are 2 whole batches: 10 steps, of which 4 warm up."""
    finetune(candidate, config(lr=1e-2))
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert len(rates) == 10
    assert rates[-1] < 1e-3


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The weights of every encoder that was trained, as they are when the test images come."""
    found: list[dict[str, torch.Tensor]] = []

    def extract(encoder: Encoder, images: torch.Tensor) -> torch.Tensor:
        found.append(dict(encoder.named_parameters()))
        return extract_features(encoder, images)

    monkeypatch.setattr("fedbench.evaluation.finetune.extract_features", extract)
    return found


def test_every_weight_of_the_encoder_is_trained(
    candidate: Candidate, trained: list[dict[str, torch.Tensor]]
) -> None:
    candidate.encoder.requires_grad_(False)  # as a run may leave it
    finetune(candidate, config())
    assert not [name for name, before in candidate.encoder.named_parameters() if before.equal(trained[0][name])]


def test_augmentation_and_order_depend_on_the_seed_alone(
    candidate: Candidate, trained: list[dict[str, torch.Tensor]]
) -> None:
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)
        finetune(candidate, config().model_copy(update={"seed": seed}))
    same, again, other = trained
    assert all(same[name].equal(again[name]) for name in same)
    assert not all(same[name].equal(other[name]) for name in same)


def test_images_are_augmented_one_by_one(candidate: Candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedbench.evaluation import finetune as module

    shapes: list[torch.Size] = []
    augment = module.RandAugment.forward

    def recording(self: Any, image: torch.Tensor) -> torch.Tensor:
        shapes.append(image.shape)
        return augment(self, image)

    monkeypatch.setattr(module.RandAugment, "forward", recording)
    module.finetune(candidate, config())
    assert shapes == [(1, 8, 8)] * 5 * 64


def test_a_resnet_whose_last_batch_would_be_one_image_is_trained(candidate: Candidate) -> None:
    resnet = build_encoder(EncoderConfig(name="resnet18", image_size=8, depth=4), depth=4)
    one_more = replace(candidate, encoder=resnet, fit_images=candidate.fit_images[:65])
    one_more = replace(one_more, fit_labels=candidate.fit_labels[:65])
    assert finetune(one_more, config(epochs=1, warmup_epochs=0)).shape == (30,)
