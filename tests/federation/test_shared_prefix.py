"""The frozen blocks run once for all branches, and nobody can tell from the numbers."""

import copy
from collections.abc import Callable

import pytest
import torch
from fedbench.methods.ssl.moco_v3 import MoCoV3
from local_task import local_task
from ssl_methods import NEEDS_TOKENS, NO_PROJECTIONS, ONE_WIDTH, methods, needed
from torch import Tensor

from fedbench.config import Config
from fedbench.federation.experiment import prepare
from fedbench.training.local import LocalTask
from fedbench.training.model import build_model
from fedbench.training.visit import VisitHooks

Tiny = Callable[..., Config]
RESNET = {"encoder": {"name": "resnet18", "depth": 4}, "data": {"num_train": 16}}


def task_of(config: Config, stage: int) -> LocalTask:
    task = local_task(config, stage)
    VisitHooks(task, stage, False, {}).begin()
    return task


def step(task: LocalTask, views: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    task.zero_grad()
    torch.manual_seed(0)  # of the noise in what is trained
    loss = task.step_loss(views)
    loss.backward()
    return loss.detach(), {
        key: weight.grad.clone() for key, weight in task.trained.items() if weight.grad is not None
    }


@pytest.mark.parametrize("ssl", methods(without=NO_PROJECTIONS))
@pytest.mark.parametrize("encoder", [{}, RESNET])
def test_loss_and_gradients_are_those_of_separate_branches_bit_for_bit(
    tiny: Tiny, ssl: str, encoder: dict[str, object]
) -> None:
    if encoder and ssl in NEEDS_TOKENS | ONE_WIDTH:
        pytest.skip(f"{ssl} refuses a residual network")
    task = task_of(tiny(encoder, needed(ssl), strategy="lw_fedssl@v3", ssl=ssl), stage=3)
    views = (torch.randn(8, 1, 8, 8), torch.randn(8, 1, 8, 8))
    before = copy.deepcopy(task.method.state_dict())
    shared = step(task, views)
    task.method.load_state_dict(before)  # a step moves queues and centres
    assert task.prefix is not None
    assert task.prefix.num_blocks == 2
    for branch in task.encoders:
        branch.prefix = None
    separate = step(task, views)
    assert torch.equal(shared[0], separate[0])
    assert shared[1].keys() == separate[1].keys() != set()
    assert all(torch.equal(shared[1][key], separate[1][key]) for key in shared[1])


def test_frozen_blocks_run_once_per_view(tiny: Tiny) -> None:
    task = task_of(tiny(strategy="lw_fedssl@v3"), stage=3)
    calls = []
    for encoder in task.encoders:
        encoder.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    step(task, (torch.randn(8, 1, 8, 8), torch.randn(8, 1, 8, 8)))
    assert len(task.encoders) == 3  # online, target, received
    assert len(calls) == 2


def test_a_view_that_was_changed_in_place_is_another_view(tiny: Tiny) -> None:
    task = task_of(tiny(strategy="lw_fedssl@v3"), stage=3)
    view = torch.randn(8, 1, 8, 8)
    with torch.no_grad():
        before = task.method.project(view)
        view.mul_(2)
        assert not torch.equal(task.method.project(view), before)


def test_nothing_is_shared_where_all_is_trained(tiny: Tiny) -> None:
    assert task_of(tiny(strategy="fedssl"), stage=1).prefix is None
    assert task_of(tiny(strategy="lw_fedssl"), stage=1).prefix is None


def test_views_do_not_outlive_their_step(tiny: Tiny) -> None:
    task = task_of(tiny(strategy="lw_fedssl"), stage=2)
    step(task, (torch.randn(8, 1, 8, 8), torch.randn(8, 1, 8, 8)))
    assert task.prefix is not None
    assert task.prefix._known == []


def test_a_gradient_that_somebody_wants_at_the_images_gets_there(tiny: Tiny) -> None:
    task = task_of(tiny(strategy="lw_fedssl@v3"), stage=3)
    prompt = torch.zeros(1, 8, 8, requires_grad=True)
    task.method.project(torch.randn(8, 1, 8, 8) + prompt).square().sum().backward()
    assert prompt.grad is not None
    assert prompt.grad.abs().sum() > 0


def test_an_encoder_with_weights_of_its_own_shares_nothing(tiny: Tiny) -> None:
    config = tiny(strategy="lw_fedssl@v3")
    model = build_model(config, 3)
    model.target_oracle = copy.deepcopy(model.encoder)
    task = LocalTask(
        model, prepare(config).plans[2].trained_groups, (), config.optimizer, prepare(config).views, torch.empty(0)
    )
    assert task.prefix is not None
    assert model.encoder.prefix is model.target_encoder.prefix is task.prefix  # type: ignore[union-attr]
    assert model.target_oracle.prefix is None


def test_a_target_with_rules_of_its_own_shares_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(strategy="lw_fedssl@v3")
    monkeypatch.setattr(MoCoV3, "rebuild_target", lambda self: None)
    task = task_of(config, stage=3)
    assert task.method.encoder.prefix is task.prefix is not None
    assert task.method.target_encoder is not None
    assert task.method.target_encoder.prefix is None
