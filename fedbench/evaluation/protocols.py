"""The protocols by name, and an encoder judged by some of them."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from fedbench.config.schema import Config, Section
from fedbench.data import Dataset
from fedbench.encoders import Encoder
from fedbench.evaluation.candidate import Candidate
from fedbench.evaluation.finetune import finetune
from fedbench.evaluation.knn import knn
from fedbench.evaluation.linear import few_label, linear
from fedbench.evaluation.retrieval import recall, retrieval
from fedbench.evaluation.scores import scores
from fedbench.protocols import ProtocolName

Protocol = Callable[[Candidate, Config], Tensor]
PREDICT: Mapping[ProtocolName, Protocol] = {
    "linear": linear,
    "finetune": finetune,
    "knn": knn,
    "few_label_1": partial(few_label, percent=1),
    "few_label_10": partial(few_label, percent=10),
    "retrieval": retrieval,
}


def evaluate(
    encoder: Encoder, dataset: Dataset, config: Config, protocols: Iterable[ProtocolName]
) -> dict[str, float]:
    """Judge an encoder, which stays as it is, on its device; draws come from streams of `config.seed`.

    Returns:
        For each protocol `<protocol>_top1`, `_per_class_mean`, `_macro_precision`, `_macro_recall`, `_macro_f1`,
        as fractions; for `retrieval` what `recall` gives.
    """
    candidate = Candidate.on(encoder, dataset)
    figures: dict[str, float] = {}
    for name in protocols:
        predicted = PREDICT[name](candidate, config).cpu()
        if name == "retrieval":
            found = recall(predicted)
        else:
            found = scores(predicted, candidate.test_labels, candidate.num_classes)
        figures |= {f"{name}_{figure}": value for figure, value in found.items()}
    return figures


def description(name: ProtocolName, dataset: Dataset, config: Config) -> dict[str, Any]:
    """What a protocol's figures depend on besides the encoder: its settings, and the data that it judged on."""
    sections: Mapping[str, Section] = {"knn": config.evaluation.knn, "finetune": config.evaluation.finetune}
    section = sections.get(name, config.probe)
    settings = {} if name == "retrieval" else section.model_dump(mode="json")
    scored = {} if config.evaluation.split == "test" else {"split": config.evaluation.split}
    return {
        "protocol": name,
        "settings": settings | scored,
        "data": dataset.name,
        "data_hash": dataset.content_hash,
    }
