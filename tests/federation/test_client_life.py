"""What a client does around its steps, and what it keeps between its visits."""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exhaustive import exhaustive
from fedbench.methods.mechanisms.fedema import FedEMA
from local_task import local_task
from torch import Tensor

import fedbench
from fedbench.config import Config
from fedbench.conformance.witness import Witness
from fedbench.encoders.tensor_groups import group_of
from fedbench.errors import UserError
from fedbench.federation import LocalVisit, Mechanism
from fedbench.federation.client_states import ClientStates
from fedbench.federation.diagnostics import divergence
from fedbench.federation.experiment import check, prepare
from fedbench.federation.federation import Federation
from fedbench.federation.observer import Observer
from fedbench.federation.protocol import Visit
from fedbench.metering.step import StepCost, trace_step
from fedbench.ssl import SSLMethod
from fedbench.training.visit import KeptBefore, VisitHooks, handed, own_images, specs_of

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


@pytest.mark.parametrize(
    "strategy", [{"name": "fedssl", "moon": True}, exhaustive({"name": "fedssl", "fedema": True})]
)
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


def test_what_is_not_under_training_is_refused(tiny: Tiny) -> None:
    visit, _ = VisitHooks(local_task(tiny(strategy="lw_fedssl"), stage=2), 2, False, {}).visits.values()
    frozen = {"encoder.blocks.0.norm1.weight": torch.zeros(1)}
    for call in (visit.start_from, visit.load_target, lambda values: visit.freeze("x", values)):
        with pytest.raises(UserError, match=r"encoder\.blocks\.0\.norm1\.weight"):
            call(frozen)
    with pytest.raises(UserError, match="names without a dot"):
        visit.keep("part", frozen)
    visit.keep("part", {"scalar": torch.tensor(2.0)})
    assert visit.kept("part") == {"scalar": torch.tensor(2.0)}


def test_only_what_fits_is_handed_out(tiny: Tiny) -> None:
    task = local_task(tiny(strategy="lw_fedssl"), stage=2)
    own = {
        "encoder.blocks.0.norm1.weight": torch.ones(16),  # frozen now
        "encoder.blocks.1.norm1.weight": torch.ones(task.method.encoder.feature_dim),
        "encoder.norm.weight": torch.ones(3),  # of another shape
        "lambda": torch.tensor(1.0),
    }
    name = type(task.terms[0]).__name__
    visit = VisitHooks(task, 2, False, {name: {"own": own}}).visits[name]
    assert visit.kept("own").keys() == {"encoder.blocks.1.norm1.weight", "lambda"}
    assert visit.kept("nothing") == {}


def test_where_a_client_starts_from_its_target_does_too(tiny: Tiny) -> None:
    task = local_task(tiny())
    visit, _ = VisitHooks(task, 1, False, {}).visits.values()
    visit.start_from({key: value + 1 for key, value in visit.trained.items()})
    online = task.method.online_state()
    assert all(torch.equal(value, online[key]) for key, value in task.method.target_state().items())


def test_a_client_has_its_own_teachers_alone(tiny: Tiny) -> None:
    task = local_task(tiny(strategy={"name": "fedssl", "moon": True}))
    before = {"Moon": {"own": dict(task.method.online_state())}}
    VisitHooks(task, 1, True, before).begin()
    assert task.teachers.keys() == {"received", "previous"}
    VisitHooks(task, 1, False, {}).begin()
    assert task.teachers.keys() == {"received"}


def test_visits_that_cost_the_same_are_handed_the_same(tiny: Tiny) -> None:
    """Blocks by their position among those that run: blocks 0 and 1 of (0, 2) and (1, 2) are alike."""
    config = tiny(encoder={"depth": 3})
    model = local_task(config).method

    def of_visit(same_stage: bool, *run: int) -> KeptBefore:
        groups = frozenset(f"block_{block + 1}" for block in run)
        own = {key: value for key, value in model.online_state().items() if group_of(key) in groups}
        return handed(KeptBefore(same_stage, tuple(specs_of({"Moon": {"own": own}}))), model, groups, run)

    assert of_visit(True, 0, 2) == of_visit(True, 1, 2)
    assert of_visit(True, 0, 2).specs
    assert of_visit(True, 0, 2) != of_visit(True, 2)
    assert of_visit(True, 0, 2) != of_visit(False, 0, 2)


def test_fedema_at_tau_zero_is_fedu_without_its_predictors_rule(tiny: Tiny) -> None:
    ema, fedu = (
        Witness(prepare(tiny(strategy={"name": "fedssl", **one}))).final[-1]
        for one in ({"fedema": {"tau": 0.0}}, {"fedu": {"mu": None}})
    )
    assert all(torch.equal(ema[key], fedu[key]) for key in ema)


def test_fedema_mixes_by_the_divergence_of_each_client(tiny: Tiny) -> None:
    task = local_task(tiny(strategy={"name": "fedssl", "fedema": {"tau": 0.5}}))
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
    task = local_task(tiny(strategy={"name": "fedssl", "fedu": {"mu": mu}}))
    received = {key: value.clone() for key, value in task.method.online_state().items()}
    own = {key: value + 1 for key, value in received.items()}
    VisitHooks(task, 1, True, {"FedU": {"own": own}}).begin()
    for key, value in task.method.online_state().items():
        assert torch.equal(value, own[key] if is_own and key.startswith("prediction_head.") else received[key])


def test_fedu_refuses_a_method_without_a_target(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"strategy\.fedu: ssl\.name=simclr"):
        check(tiny(strategy={"name": "fedssl", "fedu": True}, ssl="simclr"))


def test_the_target_goes_on_where_the_last_visit_left_it(tiny: Tiny) -> None:
    task = local_task(tiny(strategy={"name": "lw_fedssl", "fedu": {"mu": None}}), stage=2)
    hooks = VisitHooks(task, 2, False, {})
    hooks.begin()
    task.method.load_target({key: value + 1 for key, value in hooks.visits["FedU"].target.items()})
    left = {key: value.clone() for key, value in task.method.target_state().items()}
    hooks.end()
    task.method.rebuild_target()
    VisitHooks(task, 2, True, hooks.kept).begin()
    assert all(torch.equal(value, left[key]) for key, value in task.method.target_state().items())


@dataclass(frozen=True)
class WorksAround(Mechanism):
    """Multiplies two matrices of ones before the steps, and keeps a scalar behind them."""

    size: int = 64

    def begin_visit(self, visit: LocalVisit) -> None:
        ones = torch.ones(self.size, self.size)
        visit.keep("product", {"sum": (ones @ ones).sum()})


def test_what_a_hook_computes_is_counted_once_a_visit_in_flops_and_memory(tiny: Tiny) -> None:
    task = local_task(tiny())
    plain = trace_step(task, 8, (1, 8, 8), "32-true")
    task.terms = (*task.terms, WorksAround(64))
    small = trace_step(task, 8, (1, 8, 8), "32-true")
    assert (plain.around_flops, small.around_flops) == (0, 2 * 64**3)
    assert small.of_visit(5) == 5 * plain.flops + 2 * 64**3
    assert small.peak_memory_bytes == plain.peak_memory_bytes
    task.terms = (WorksAround(2048),)
    assert (
        trace_step(task, 8, (1, 8, 8), "32-true").peak_memory_bytes >= 2 * 4 * 2048**2
    )  # ones, and their product


@pytest.mark.costs
def test_a_runs_flops_have_what_its_hooks_computed(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "works.py"
    file.write_text(
        "import torch\nfrom dataclasses import dataclass\nfrom fedbench.federation import Mechanism\n\n\n"
        "@dataclass(frozen=True)\nclass Works(Mechanism):\n"
        "    def end_visit(self, visit):\n"
        "        visit.keep('product', {'sum': (torch.ones(64, 64) @ torch.ones(64, 64)).sum()})\n"
    )
    config, plain = (tiny(strategy={"name": "fedssl", **one}) for one in ({str(file): True}, {}))
    with_it, without = (Witness(prepare(one)).records for one in (config, plain))
    visits = sum(len(record.uploads) for record in without)
    assert sum(one.flops for one in with_it) - sum(one.flops for one in without) == visits * 2 * 64**3
    clients = config.federation.num_clients
    assert sum(one.flops for one in with_it) == fedbench.profile(config).total("flops", "step") * clients


@pytest.mark.costs
@pytest.mark.parametrize(("mechanism", "number"), [("moon", 3), exhaustive("fedema", 4)])
def test_kept_blocks_are_alike_so_that_chance_needs_few_traces(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, mechanism: str, number: int
) -> None:
    """Depth dropout draws the blocks of each visit: costs depend on how many are kept, not on which."""
    config = tiny(
        strategy={
            "name": "fedssl",
            mechanism: True,
            "depth_dropout": {"max_depth": 2},
        },
        encoder={"depth": 5},
        federation={"rounds": 8},
    )
    traces = []

    def counted(*args: Any) -> StepCost:
        traces.append(args)
        return trace_step(*args)

    monkeypatch.setattr(sys.modules["fedbench.profiling.profile"], "trace_step", counted)  # a function hides it
    predicted = fedbench.profile(config)
    visits = config.federation.num_clients * 8
    assert len(traces) == number < visits  # nothing kept; blocks kept, of which this visit runs the first, or not
    records = Witness(prepare(config)).records
    assert sum(one.flops for one in records) == predicted.total("flops", "step") * config.federation.num_clients
    assert max(one.peak_memory_bytes for one in records) == predicted.peak_memory_bytes


def test_every_visit_begins_with_a_target_rebuilt_from_what_was_received(tiny: Tiny) -> None:
    class Looks(Observer):
        seen = 0

        def visit_started(self, visit: Visit, model: SSLMethod) -> None:
            online = model.online_state()
            assert all(torch.equal(value, online[key]) for key, value in model.target_state().items())
            Looks.seen += 1

    experiment = prepare(tiny(federation={"rounds": 2}))
    with TemporaryDirectory() as folder:
        for _ in Federation(experiment, Path(folder), Looks()).rounds():
            pass
    assert Looks.seen == 2 * experiment.config.federation.num_clients


def numbered(num_images: int) -> Any:
    """A task whose views are the images, and whose images are their numbers."""
    images = torch.arange(num_images).reshape(-1, 1, 1, 1)
    return SimpleNamespace(images=images, views=lambda images, _: (images, None))


def test_a_visit_draws_views_of_the_clients_own_images_each_as_often_as_any_other() -> None:
    draw = own_images(numbered(20), torch.tensor([4, 7, 9]), 0, 3, 1)
    drawn = draw("One", 8).flatten().tolist()
    assert sorted(Counter(drawn).values()) == [2, 3, 3]
    assert set(drawn) == {4, 7, 9}
    assert sorted(draw("One", 3).flatten().tolist()) == [4, 7, 9]


def test_what_a_visit_draws_follows_from_seed_plugin_round_and_client_alone() -> None:
    def drawn(plugin: str, seed: int, *key: int) -> list[int]:
        return own_images(numbered(40), torch.arange(40), seed, *key)(plugin, 20).flatten().tolist()

    torch.manual_seed(1)
    first = drawn("One", 0, 3, 1)
    torch.manual_seed(2)
    assert drawn("One", 0, 3, 1) == first
    for other in (drawn("Other", 0, 3, 1), drawn("One", 1, 3, 1), drawn("One", 0, 4, 1), drawn("One", 0, 3, 2)):
        assert other != first


@pytest.mark.parametrize("stage", [1, 2])  # without frozen blocks, with some
def test_a_visit_projects_by_the_model_as_it_is_and_leaves_it_so(tiny: Tiny, stage: int) -> None:
    task = local_task(tiny(strategy="lw_fedssl", ssl="byol"), stage)
    visit, _ = VisitHooks(task, stage, False, {}).visits.values()
    before = {key: value.clone() for key, value in task.method.state_dict().items()}
    view = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        z = visit.project(view)
        for weight in task.method.encoder.blocks[0].parameters():  # frozen: a prefix may remember what it made
            weight.add_(0.1 * torch.randn_like(weight))
        moved = visit.project(view)
        task.method.load_state_dict(before)
        expected = task.method.eval().project(view.clone())
    assert torch.equal(z, expected)
    assert not torch.equal(moved, z)
    assert (task.prefix is None) == (stage == 1)


def test_to_project_changes_neither_buffers_nor_modes(tiny: Tiny) -> None:
    task = local_task(tiny(ssl="byol"))
    task.method.projection_head.eval()
    visit, _ = VisitHooks(task, 1, False, {}).visits.values()
    before = {key: value.clone() for key, value in task.method.state_dict().items()}
    modes = [module.training for module in task.method.modules()]
    visit.project(torch.randn(5, 1, 8, 8))
    assert [module.training for module in task.method.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in task.method.state_dict().items())
