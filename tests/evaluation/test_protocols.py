"""What all protocols have in common."""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from fedbench.config import Config, EncoderConfig, load_config
from fedbench.data import Dataset
from fedbench.encoders import build_encoder
from fedbench.evaluation import Candidate, description, evaluate, untrained_encoder
from fedbench.evaluation.protocols import PREDICT
from fedbench.protocols import PROTOCOLS, ProtocolName
from fedbench.training.model import build_model

NAMES = get_args(ProtocolName)
QUICK: dict[str, Any] = {"finetune": {"epochs": 2, "warmup_epochs": 1, "batch_size": 32}}


def config(**keys: Any) -> Config:
    return load_config({"evaluation": QUICK, "probe": {"epochs": 3}}, keys)


def test_every_protocol_that_can_be_named_is_there_and_described() -> None:
    assert set(NAMES) == set(PREDICT) == set(PROTOCOLS)


@pytest.mark.parametrize("name", NAMES)
def test_no_protocol_reads_the_labels_that_it_is_scored_on(candidate: Candidate, name: ProtocolName) -> None:
    blind = replace(candidate, test_labels=None)
    expected = PREDICT[name](candidate, config())
    assert torch.equal(PREDICT[name](blind, config()), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_protocol_leaves_encoder_and_global_generator_as_they_were(
    candidate: Candidate, name: ProtocolName
) -> None:
    before = {key: value.clone() for key, value in candidate.encoder.state_dict().items()}
    generator = torch.get_rng_state()
    PREDICT[name](candidate, config())
    assert all(torch.equal(before[key], value) for key, value in candidate.encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_predicts_the_same_whatever_the_global_generator_says(
    candidate: Candidate, name: ProtocolName
) -> None:
    predicted = []
    for number in range(2):
        torch.manual_seed(number)
        predicted.append(PREDICT[name](candidate, config()))
    assert torch.equal(*predicted)


def test_every_figure_bears_the_name_of_its_protocol(dataset: Dataset, candidate: Candidate) -> None:
    figures = evaluate(candidate.encoder, dataset, config(), ["knn", "few_label_10"])
    kinds = ("top1", "per_class_mean", "macro_precision", "macro_recall", "macro_f1")
    assert list(figures) == [f"{name}_{kind}" for name in ("knn", "few_label_10") for kind in kinds]
    assert figures["knn_top1"] == pytest.approx(1.0)  # brightness is easily seen


def test_a_description_holds_the_settings_of_that_protocol_and_the_data(dataset: Dataset) -> None:
    keys = {name: set(description(name, dataset, config())["settings"]) for name in NAMES}
    assert keys["knn"] == {"k", "temperature"}
    assert keys["linear"] == keys["few_label_1"] == {"epochs", "batch_size", "lr", "weight_decay"}
    assert keys["finetune"] > {"warmup_epochs", "num_ops", "magnitude"}
    assert description("knn", dataset, config())["data_hash"] == dataset.content_hash


@pytest.mark.parametrize("strategy", ["fedssl", "lw_fedssl@v3"])
@pytest.mark.parametrize("ssl", ["moco_v3", "simclr"])
def test_the_floor_is_the_encoder_that_a_whole_model_begins_with(strategy: str, ssl: str) -> None:
    whole = config(strategy=strategy, ssl=ssl, seed=3)
    expected = build_model(whole, whole.encoder.depth).encoder.state_dict()
    floor = untrained_encoder(whole).state_dict()
    assert floor.keys() == expected.keys()
    assert all(torch.equal(floor[key], expected[key]) for key in floor)


def test_features_are_computed_once_for_all_protocols_that_freeze(
    candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(width=16, depth=1, heads=2), depth=1)
    encoder.register_forward_hook(lambda *_: calls.append(1))
    again = replace(candidate, encoder=encoder)
    for name in ("linear", "knn", "few_label_1"):
        PREDICT[name](again, config())
    assert len(calls) == 2  # one chunk of each split
