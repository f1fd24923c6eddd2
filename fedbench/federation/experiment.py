"""A run made ready: every error that a configuration can cause is raised here, before anything is trained."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedbench.config.schema import Config
from fedbench.data import Dataset, Views, build_views, load_dataset, partition
from fedbench.errors import UserError
from fedbench.federation.plan import StagePlan, check_plan, split_rounds
from fedbench.federation.strategy import Strategy, load_strategy
from fedbench.plugins import load_plugin
from fedbench.random import generator
from fedbench.ssl import SSLMethod


@dataclass(frozen=True)
class Experiment:
    """One cell, checked and loaded.

    Attributes:
        plans: one per stage.
        rounds_per_stage: R_s.
        client_indices: D^n as indices (int64) into the pre-training images.
    """

    config: Config
    strategy: Strategy
    plans: list[StagePlan]
    rounds_per_stage: list[int]
    dataset: Dataset
    client_indices: list[Tensor]
    views: Views
    device: torch.device


def check(config: Config) -> tuple[Strategy, list[StagePlan], list[int]]:
    """Everything that can be checked without data: plugins, plans, rounds, accelerator.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    load_plugin("ssl", config.ssl.name, SSLMethod)
    strategy = load_strategy(config.strategy)
    blocks = config.encoder.depth
    num_stages, rounds = strategy.num_stages(blocks), config.federation.rounds
    if rounds < num_stages:
        raise UserError(
            f"federation.rounds={rounds} is fewer than the {num_stages} stages of "
            f"strategy={config.strategy['name']} with encoder.depth={blocks}; allowed: {num_stages} or more"
        )
    plans = [strategy.plan(stage, blocks) for stage in range(1, num_stages + 1)]
    for stage, plan in enumerate(plans, start=1):
        check_plan(plan, stage, blocks)
    choose_device(config.accelerator)
    return strategy, plans, split_rounds(rounds, num_stages)


def prepare(config: Config) -> Experiment:
    """Check the configuration, load the data, split it over the clients."""
    strategy, plans, rounds_per_stage = check(config)
    dataset = load_dataset(config.data, config.encoder)
    client_indices = partition(
        dataset.train_labels,
        config.federation.num_clients,
        config.data.partition,
        generator(config.seed, "partition"),
    )
    views = build_views(config.augmentation, config.encoder.image_size)
    device = choose_device(config.accelerator)
    return Experiment(config, strategy, plans, rounds_per_stage, dataset, client_indices, views, device)


def choose_device(accelerator: str) -> torch.device:
    """`auto` is the GPU if there is one.

    Raises:
        UserError: `cuda` was asked for and torch sees no GPU.
    """
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("accelerator='cuda', but torch sees no GPU; allowed here: auto, cpu")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
