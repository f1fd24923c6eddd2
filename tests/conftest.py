"""The smallest configuration that has every part: a few seconds for all strategies together."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedbench.config import Config, load_config

TINY = {
    "ssl": {"hidden_dim": 16, "output_dim": 8},
    "encoder": {"name": "vit", "image_size": 8, "patch_size": 4, "width": 16, "depth": 3, "heads": 2},
    "data": {"name": "digits", "num_train": 60},
    "federation": {"num_clients": 3, "rounds": 6, "local_epochs": 1},
    "optimizer": {"base_lr": 1.0e-1, "batch_size": 8},
    "probe": {"epochs": 5},
    "tracking": {"wandb": "disabled"},
    "accelerator": "cpu",
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # tiny tensors gain nothing from a second thread


@pytest.fixture
def tiny() -> Callable[..., Config]:
    """`tiny({"ssl": "byol"}, seed=1)`: the tiny configuration with something else in it."""

    def build(*trees: dict[str, Any], **keys: Any) -> Config:
        return load_config(TINY, *trees, keys)

    return build
