"""A small encoder, and images whose class shows in their brightness."""

import pytest
import torch

from fedbench.config import EncoderConfig
from fedbench.data import Dataset
from fedbench.encoders import build_encoder
from fedbench.evaluation import Candidate

CLASSES = ("dark", "grey", "bright")


def images_of(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """Noise around 40, 120 and 200."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randint(-30, 31, (len(labels), 1, 8, 8), generator=draw)
    return (40 + 80 * labels[:, None, None, None] + noise).to(torch.uint8)


@pytest.fixture
def dataset() -> Dataset:
    """90 images to learn from and 30 to be scored on, of three classes."""
    fit, test = torch.arange(90) % 3, torch.arange(30) % 3
    return Dataset("shades", images_of(fit, 0), fit, images_of(test, 1), test, CLASSES)


@pytest.fixture
def candidate(dataset: Dataset) -> Candidate:
    """An untrained encoder, judged on those."""
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(width=16, depth=1, heads=2), depth=1)
    return Candidate.on(encoder, dataset)
