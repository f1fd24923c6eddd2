"""What a client does around its steps, and what it keeps between its visits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fedbench.methods.mechanisms.fedema import FedEMA
from torch import Tensor

import fedbench
from fedbench.config import Config
from fedbench.conformance.witness import Witness
from fedbench.errors import UserError
from fedbench.federation.client_states import ClientStates
from fedbench.federation.diagnostics import divergence
from fedbench.federation.experiment import check, prepare
from fedbench.training.local import LocalTask, Received
from fedbench.training.model import build_model
from fedbench.training.visit import VisitHooks

Tiny = Callable[..., Config]


def kept(number: float) -> dict[str, dict[str, dict[str, Tensor]]]:
    return {"Moon": {"own": {"encoder.norm.weight": torch.full((2,), number)}}}


def test_the_states_of_two_visits_before_the_latest_stay(tmp_path: Path) -> None:
    states = ClientStates(tmp_path)
    assert states.load(7, 0, 1) == (False, {})
    for round_index in range(5):
        states.save(7, round_index, 1 + round_index // 4, kept(round_index))
    for before, number in ((5, 4), (4, 3), (3, 2)):
        assert states.load(7, before, 2)[1]["Moon"]["own"]["encoder.norm.weight"][0] == number
    assert [states.load(7, before, 2)[0] for before in (5, 4)] == [True, False]
    assert states.load(7, 2, 2) == (False, {})
    assert states.load(8, 5, 2) == (False, {})


@pytest.mark.parametrize("strategy", [{"name": "fedssl", "moon": True}, {"name": "fedssl", "fedema": True}])
def test_a_damaged_checkpoint_costs_a_round_and_no_bit(
    tiny: Tiny, tmp_path: Path, strategy: dict[str, Any]
) -> None:
    """The run goes on from the checkpoint before the newest, whose clients need what they kept then."""
    config = tiny(strategy=strategy, federation={"rounds": 5})
    whole = fedbench.run(config, out=tmp_path / "whole").path
    rounds = fedbench.federate(config, out=tmp_path / "stopped")
    for _ in range(4):
        next(rounds)
    rounds.close()
    (newest,) = (tmp_path / "stopped").glob("*/checkpoint.safetensors")
    newest.write_bytes(newest.read_bytes()[:-9])
    resumed = fedbench.run(config, out=tmp_path / "stopped").path
    assert (whole / "encoder.safetensors").read_bytes() == (resumed / "encoder.safetensors").read_bytes()


def visit_of(tiny: Tiny, strategy: Any, stage: int = 1) -> tuple[LocalTask, VisitHooks]:
    config = tiny(strategy=strategy)
    experiment = prepare(config)
    plan = experiment.plans[stage - 1]
    model = build_model(config, plan.depth)
    terms = (experiment.strategy, *experiment.mechanisms)
    task = LocalTask(
        model, plan.trained_groups, terms, config.optimizer, experiment.views, experiment.dataset.train_images
    )
    received = {key: value.clone() for key, value in model.online_state().items()}
    task.received = Received(received, task.images.device)
    return task, VisitHooks(task, stage, False, {})


def test_what_is_not_under_training_is_refused(tiny: Tiny) -> None:
    _, hooks = visit_of(tiny, "lw_fedssl", stage=2)
    (visit,) = hooks.visits
    frozen = {"encoder.blocks.0.norm1.weight": torch.zeros(1)}
    for call in (visit.start_from, visit.load_target, lambda values: visit.freeze("x", values)):
        with pytest.raises(UserError, match=r"encoder\.blocks\.0\.norm1\.weight"):
            call(frozen)
    with pytest.raises(UserError, match="names without a dot"):
        visit.keep("part", frozen)
    visit.keep("part", {"scalar": torch.tensor(2.0)})
    assert visit.kept("part") == {"scalar": torch.tensor(2.0)}


def test_only_what_fits_is_handed_out(tiny: Tiny) -> None:
    task, _ = visit_of(tiny, "lw_fedssl", stage=2)
    own = {
        "encoder.blocks.0.norm1.weight": torch.ones(16),  # frozen now
        "encoder.blocks.1.norm1.weight": torch.ones(task.method.encoder.feature_dim),
        "encoder.norm.weight": torch.ones(3),  # of another shape
        "lambda": torch.tensor(1.0),
    }
    name = type(task.terms[0]).__name__
    visit = VisitHooks(task, 2, False, {name: {"own": own}}).visits[0]
    assert visit.kept("own").keys() == {"encoder.blocks.1.norm1.weight", "lambda"}
    assert visit.kept("nothing") == {}


def test_fedema_at_tau_zero_is_fedu_without_its_predictors_rule(tiny: Tiny) -> None:
    ema, fedu = (
        Witness(prepare(tiny(strategy={"name": "fedssl", **one}))).final[-1]
        for one in ({"fedema": {"tau": 0.0}}, {"fedu": {"mu": None}})
    )
    assert all(torch.equal(ema[key], fedu[key]) for key in ema)


def test_fedema_mixes_by_the_divergence_of_each_client(tiny: Tiny) -> None:
    task, _ = visit_of(tiny, {"name": "fedssl", "fedema": {"tau": 0.5}})
    received = {key: value.clone() for key, value in task.method.online_state().items()}
    own = {key: value + 0.25 if value.is_floating_point() else value + 3 for key, value in received.items()}
    target = {key: value + 1 for key, value in task.method.target_state().items()}
    hooks = VisitHooks(task, 1, True, {"FedEMA": {"own": own, "target": target}})
    hooks.begin()
    for key, value in task.method.online_state().items():
        expected = received[key] + (0.125 if value.is_floating_point() else 0)  # mu = tau: the first divergence
        torch.testing.assert_close(value, expected)
    assert all(torch.equal(value, target[key]) for key, value in task.method.target_state().items())
    first = divergence(own, received)
    assert first is not None
    scale = hooks.kept["FedEMA"]["scale"]["lambda"]
    torch.testing.assert_close(scale, 0.5 / first)
    assert FedEMA(tau=0.5).scale(scale, 7 * first) == scale
    assert FedEMA(tau=0.5).scale(None, torch.tensor(0.0)) == 0


@pytest.mark.parametrize(("mu", "is_own"), [(0.4, True), (1e9, False)])
def test_fedu_keeps_the_predictor_where_the_encoder_moved_far(tiny: Tiny, mu: float, is_own: bool) -> None:
    task, _ = visit_of(tiny, {"name": "fedssl", "fedu": {"mu": mu}})
    received = {key: value.clone() for key, value in task.method.online_state().items()}
    own = {key: value + 1 for key, value in received.items()}
    VisitHooks(task, 1, True, {"FedU": {"own": own}}).begin()
    for key, value in task.method.online_state().items():
        assert torch.equal(value, own[key] if is_own and key.startswith("prediction_head.") else received[key])


def test_fedu_refuses_a_method_without_a_target(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"strategy\.fedu: ssl\.name=simclr"):
        check(tiny(strategy={"name": "fedssl", "fedu": True}, ssl="simclr"))


def test_the_target_goes_on_where_the_last_visit_left_it(tiny: Tiny) -> None:
    task, hooks = visit_of(tiny, {"name": "lw_fedssl", "fedu": {"mu": None}}, stage=2)
    hooks.begin()
    task.method.load_target({key: value + 1 for key, value in hooks.visits[0].target.items()})
    left = {key: value.clone() for key, value in task.method.target_state().items()}
    hooks.end()
    task.method.rebuild_target()
    VisitHooks(task, 2, True, hooks.kept).begin()
    assert all(torch.equal(value, left[key]) for key, value in task.method.target_state().items())
