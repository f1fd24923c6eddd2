"""How a finished encoder is judged: the protocols in words, printed with every figure.

Heads are thrown away. Each protocol learns from the labelled images (`retrieval` from none), is scored on the test
images and reports what it has after its last epoch: the test images choose nothing. Figures of two protocols are
never ranked together.
"""

from collections.abc import Mapping
from typing import Literal

ProtocolName = Literal["linear", "finetune", "knn", "few_label_1", "few_label_10", "retrieval"]

FEW_LABELS = "`linear`, with labels for {} % of the images: the same number of each class, drawn by the seed"
PROTOCOLS: Mapping[str, str] = {
    "linear": "a linear classifier on the frozen encoder's features, all labels, last epoch",
    "finetune": "encoder and linear classifier trained together, all labels, RandAugment, last epoch",
    "knn": "the frozen encoder's nearest labelled images vote, weighted by exp(cosine similarity / temperature); "
    "no more of them vote than a class has images on average",
    "few_label_1": FEW_LABELS.format(1),
    "few_label_10": FEW_LABELS.format(10),
    "retrieval": "R@1 between two towers: whether the nearest of all test images by cosine is the same one, from "
    "one's features to the other's, mean of both directions; nothing is learned, no label is read",
}
