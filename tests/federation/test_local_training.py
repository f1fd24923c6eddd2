"""Local training against the same loop written by hand, in double precision: they differ by rounding only."""

import copy
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from by_hand import ByHand
from torch import Tensor

from fedbench.config import Config
from fedbench.conformance.witness import Witness
from fedbench.federation import LocalStep, StagePlan, Strategy
from fedbench.federation.experiment import prepare
from fedbench.ssl import SSLMethod
from fedbench.training.local import LocalTask, build_fabric, fit
from fedbench.training.model import build_model

Tiny = Callable[..., Config]
RECIPE: dict[str, Any] = {
    "optimizer": {"base_lr": 0.3, "batch_size": 8, "weight_decay": 0.5},
    "federation": {"local_epochs": 2, "rounds": 6},
    "ssl": {"momentum": 0.8, "temperature": 0.3},
}
ROUND, CLIENT = 4, 1
IMAGES = [3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43]  # two epochs: 3.25 batches of 8


@dataclass(frozen=True)
class Tilted(Strategy):
    """FedSSL whose added loss has the gradient `slope` everywhere. (A quadratic term would amplify rounding.)"""

    slope: float

    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        return StagePlan(num_blocks, range(num_blocks), range(num_blocks))

    def local_loss(self, step: LocalStep) -> Tensor:
        return self.slope * torch.stack([weight.sum() for weight in step.trained.values()]).sum()


def in_double(views: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def doubled(images: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        first, second = views(images, draw)
        return first.double(), second.double()

    return doubled


def task_of(config: Config, stage: int = 1) -> LocalTask:
    """What a client trains at `stage`, in double precision."""
    experiment = prepare(config)
    plan = experiment.plans[stage - 1]
    model = build_model(config, plan.depth)
    model.double()
    terms = (experiment.strategy, *experiment.mechanisms)
    views = in_double(experiment.views)
    return LocalTask(model, plan.trained_groups, terms, config.optimizer, views, experiment.dataset.train_images)


def trained(task: LocalTask, config: Config) -> tuple[SSLMethod, int]:
    fabric = build_fabric(config.precision, torch.device("cpu"))
    steps = fit(fabric, task, torch.tensor(IMAGES), config.federation.local_epochs, config, ROUND, CLIENT)
    return task.method, steps


def by_hand(task: LocalTask, config: Config, slope: float = 0.0) -> ByHand:
    return ByHand(task.method, config, task.views, task.images, (IMAGES, ROUND, CLIENT), slope)


@pytest.mark.parametrize(
    ("ssl", "strategy", "stage", "slope"),
    [
        ("moco_v3", {"name": "fedssl"}, 1, 0.0),
        ("byol", {"name": "lw_fedssl"}, 2, 0.0),
        ("simclr", {"name": f"{__name__}:Tilted", "slope": 0.2}, 1, 0.2),
    ],
)
def test_local_training_is_the_loop_written_by_hand(
    tiny: Tiny, ssl: str, strategy: dict[str, Any], stage: int, slope: float
) -> None:
    config = tiny(RECIPE, {"ssl": ssl, "strategy": strategy})
    task = task_of(config, stage)
    before = copy.deepcopy(task.method.online_state())
    expected = by_hand(task, config, slope)
    method, steps = trained(task, config)
    assert steps == len(expected.losses) == 4
    assert task.losses.tolist() == pytest.approx([sum(expected.losses), sum(expected.added)], rel=1e-5)
    state = method.online_state()
    assert state.keys() == expected.state.keys()
    for key, value in expected.state.items():
        torch.testing.assert_close(state[key], value, rtol=1e-6, atol=1e-6, msg=key)
    frozen = {key for key in before if stage == 2 and key.startswith(("encoder.stem", "encoder.blocks.0."))}
    moved = {key for key in expected.weights if not torch.equal(before[key], state[key])}
    assert moved == expected.weights.keys()
    assert all(torch.equal(before[key], state[key]) for key in frozen)


def test_the_target_branch_is_at_the_end_what_the_loop_by_hand_has(tiny: Tiny) -> None:
    config = tiny(RECIPE, ssl="byol")
    task = task_of(config)
    expected = by_hand(task, config).target
    method, _ = trained(task, config)
    for ours, theirs in zip((method.target_encoder, method.target_projection_head), expected, strict=True):
        assert ours is not None
        for name, weight in theirs.named_parameters():
            torch.testing.assert_close(dict(ours.named_parameters())[name], weight, rtol=1e-6, atol=1e-6)


def test_every_visit_shuffles_and_augments_by_streams_of_its_own(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rounds of three clients with 20 images each: every image is visited, in six orders."""
    visited: defaultdict[int, list[int]] = defaultdict(list)  # by the seed that augments
    step = LocalTask.training_step

    def recorded(self: LocalTask, indices: Tensor, batch_idx: int = 0) -> Tensor:
        visited[self.generator.initial_seed()] += indices.tolist()
        return step(self, indices, batch_idx)

    monkeypatch.setattr(LocalTask, "training_step", recorded)
    witness = Witness(prepare(tiny(federation={"rounds": 2})))
    clients = [witness.experiment.client_indices[visit.client].tolist() for visit in witness.visits]
    assert [sorted(set(images)) for images in visited.values()] == clients
    orders = {tuple(own.index(i) for i in images) for own, images in zip(clients, visited.values(), strict=True)}
    assert len(orders) == 6


def test_a_visit_begins_with_an_optimizer_of_its_own(tiny: Tiny) -> None:
    """Trained twice from the same values, by the same streams: the same bits."""
    config = tiny(RECIPE)
    task = task_of(config)
    start = copy.deepcopy(task.method.online_state())
    first = copy.deepcopy(trained(task, config)[0].state_dict())
    task.method.load_online(start)
    task.method.rebuild_target()
    again = trained(task, config)[0].state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
