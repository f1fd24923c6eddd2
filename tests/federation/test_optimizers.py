"""Optimizers by name, and a learning rate that follows the rounds."""

from collections.abc import Callable
from math import cos, pi
from pathlib import Path
from typing import Any

import pytest
import torch
from exhaustive import exhaustive
from local_task import local_task
from torch import nn

import fedbench
from fedbench.config import Config, OptimizerConfig
from fedbench.conformance.witness import Witness
from fedbench.errors import UserError
from fedbench.federation.experiment import prepare
from fedbench.metering.step import trace_step
from fedbench.training import local
from fedbench.training.optimizer import build_optimizer, lr_scale

Tiny = Callable[..., Config]


def stepped(config: OptimizerConfig, scale: float = 1.0, steps: int = 2) -> tuple[nn.Parameter, nn.Parameter]:
    """A matrix of ones and a vector of twos after some steps with the gradients 0.5 and 0.25."""
    matrix, vector = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.full((3,), 2.0))
    optimizer = build_optimizer([matrix, vector], config, scale)
    for _ in range(steps):
        matrix.grad, vector.grad = torch.full((2, 3), 0.5), torch.full((3,), 0.25)
        optimizer.step()
    return matrix, vector


def test_sgd_with_momentum_by_hand() -> None:
    config = OptimizerConfig(name="sgd", momentum=0.5, base_lr=0.4, batch_size=256, weight_decay=0.1)
    w, velocity = 1.0, 0.0
    for _ in range(2):
        velocity = 0.5 * velocity + 0.5 + 0.1 * w
        w -= 0.2 * velocity
    assert stepped(config, scale=0.5)[0][0, 0].item() == pytest.approx(w)


def test_lars_scales_the_step_of_a_matrix_and_not_of_a_vector() -> None:
    config = OptimizerConfig(name="lars", momentum=0.0, base_lr=2.0, batch_size=256, weight_decay=0.1)
    matrix, vector = stepped(config, steps=1)
    w_norm, g_norm = 6**0.5, 0.5 * 6**0.5
    ratio = 0.001 * w_norm / (g_norm + 0.1 * w_norm)
    assert matrix[0, 0].item() == pytest.approx(1 - 2 * ratio * (0.5 + 0.1))
    assert vector[0].item() == pytest.approx(2 - 2 * 0.25)  # and no decay


def test_lars_adapts_without_decay_too() -> None:
    config = OptimizerConfig(name="lars", momentum=0.0, base_lr=2.0, batch_size=256, weight_decay=0.0)
    assert stepped(config, steps=1)[0][0, 0].item() == pytest.approx(1 - 2 * 0.001 * 2 * 0.5)


def test_the_cosine_begins_at_one_and_a_stage_may_restart_it() -> None:
    whole, stages = (OptimizerConfig(schedule=name) for name in ("cosine", "cosine_per_stage"))  # type: ignore[arg-type]
    assert lr_scale(OptimizerConfig(), 7, 8, 3, 4) == 1.0
    assert [lr_scale(whole, r, 8, r % 4, 4) for r in (0, 4)] == pytest.approx([1, 0.5])
    assert [lr_scale(stages, r, 8, r % 4, 4) for r in (0, 2, 4, 7)] == pytest.approx(
        [1, 0.5, 1, (1 + cos(pi * 3 / 4)) / 2]
    )


@pytest.mark.parametrize("schedule", ["constant", "cosine", "cosine_per_stage"])
def test_clients_and_server_follow_the_schedule(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    rates: list[float] = []
    build = local.build_optimizer

    def noted(*arguments: Any) -> torch.optim.Optimizer:
        optimizer = build(*arguments)
        rates.append(optimizer.param_groups[0]["lr"])
        return optimizer

    strategy = {"name": "lw_fedssl", "calibration": {"base_lr": 0.2, "share": 0.2}}
    experiment = prepare(tiny(strategy=strategy, optimizer={"schedule": schedule}))
    monkeypatch.setattr(local, "build_optimizer", noted)
    monkeypatch.setattr("fedbench.federation.costs.trace_step", lambda *_: trace)
    trace = trace_step(local_task(tiny()), 8, (1, 8, 8), "32-true")
    rates.clear()
    Witness(experiment)
    falls = {
        "constant": [1] * 6,
        "cosine": [(1 + cos(pi * r / 6)) / 2 for r in range(6)],
        "cosine_per_stage": [1, 0.5] * 3,  # two rounds each
    }
    clients, server = 0.1 * 8 / 256, 0.2 * 8 / 256
    expected = [rate * scale for scale in falls[schedule] for rate in [clients] * 3 + [server]]
    assert rates == pytest.approx(expected)


@pytest.mark.costs
@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_profile_is_the_run_and_momentum_is_one_copy(tiny: Tiny, name: str) -> None:
    config = tiny(strategy="lw_fedssl", optimizer={"name": name, "schedule": "cosine"})
    records, predicted = Witness(prepare(config)).records, fedbench.profile(config)
    assert max(one.peak_memory_bytes for one in records) == predicted.peak_memory_bytes
    assert sum(one.flops for one in records) == predicted.total("flops", "step") * 3
    memory = predicted.stages[0].memory
    assert memory["optimizer state"] == memory["gradients"]
    none = fedbench.profile(tiny(strategy="lw_fedssl", optimizer={"name": name, "momentum": 0.0}))
    assert none.stages[0].memory.get("optimizer state", 0) == 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [exhaustive("sgd"), "lars"])
def test_the_engine_changes_no_bit(tiny: Tiny, tmp_path: Path, name: str) -> None:
    tree = {
        "optimizer": {"name": name, "schedule": "cosine"},
        "strategy": "prog_fedssl",
        "federation": {"rounds": 3},
    }
    states = [
        (fedbench.run(tiny(tree, engine=engine), out=tmp_path / engine).path / "encoder.safetensors").read_bytes()
        for engine in ("in_process", "processes")
    ]
    assert states[0] == states[1]


def test_what_is_left_out_is_adamw_and_constant(tiny: Tiny) -> None:
    given = tiny(optimizer={"name": "adamw", "schedule": "constant"})
    assert given == tiny()
    assert given.model_dump()["optimizer"].keys() == {"base_lr", "batch_size", "weight_decay"}


def test_a_momentum_that_is_the_default_makes_no_other_cell(tiny: Tiny) -> None:
    given, left_out = (tiny(optimizer={"name": "sgd", **more}) for more in ({"momentum": 0.9}, {}))
    assert given.model_dump() == left_out.model_dump()
    assert tiny(given.model_dump()).optimizer.momentum == 0.9


def test_adamw_has_no_momentum(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"momentum=0\.9 with name=adamw; allowed: with sgd, lars"):
        tiny(optimizer={"momentum": 0.9})
