"""Protocol `knn`: the nearest labelled images vote (Wu et al., arXiv:1805.01978, Sec. 3.4); nothing is trained."""

import logging

import torch
import torch.nn.functional as F
from lightly.utils.benchmarking import knn_predict
from torch import Tensor

from fedbench.config.schema import Config
from fedbench.evaluation.candidate import Candidate

# lightly imports Lightning under its other name, which then makes the announcements that local.py silences.
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
CHUNK = 256  # test images at a time: bounds the votes, chunk x k x classes


def knn(candidate: Candidate, config: Config) -> Tensor:
    """Classes (N,) of the test images: k votes each, weighted by exp(cosine similarity / temperature)."""
    fit, test = (F.normalize(features, dim=1) for features in candidate.features)
    labels = candidate.fit_labels.to(fit.device)
    k = num_neighbours(config.evaluation.knn.k, len(labels), candidate.num_classes)
    temperature = config.evaluation.knn.temperature
    bank = (fit.T, labels, candidate.num_classes, k, temperature)
    return torch.cat([knn_predict(part, *bank)[:, 0] for part in test.split(CHUNK)])


def num_neighbours(k: int, num_labelled: int, num_classes: int) -> int:
    """k, but at most the labelled images that a class has on average: more must come from other classes."""
    return max(1, min(k, num_labelled // num_classes))
