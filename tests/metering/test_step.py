"""FLOPs and memory of the traced step against real steps and against arithmetic by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from exhaustive import exhaustive
from local_task import local_task
from ssl_methods import fits, needed
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fedbench.config import Config
from fedbench.federation import LocalStep, Mechanism
from fedbench.metering.forward import forward_macs
from fedbench.metering.meter import Meter
from fedbench.metering.step import StepCost, measure_step, trace_step
from fedbench.plugins import builtin_files
from fedbench.training.local import LocalTask, build_fabric, fit
from fedbench.training.visit import KeptBefore, VisitHooks, specs_of

Tiny = Callable[..., Config]
SHAPE = (1, 8, 8)


def task_of(config: Config, stage: int = 1) -> LocalTask:
    task = local_task(config, stage)
    VisitHooks(task, stage, False, {}).begin()
    return task


def traced(config: Config, stage: int = 1, batch: int = 8) -> StepCost:
    return trace_step(task_of(config, stage), batch, SHAPE, config.precision)


def block_flops(width: int, tokens: int, batch: int) -> int:
    """Forward pass of one transformer block: qkv, attention (two products), projection, MLP of ratio 4."""
    dense = width * 3 * width + width * width + 2 * width * 4 * width
    return 2 * batch * (tokens * dense + 2 * tokens * tokens * width)


@pytest.mark.parametrize("precision", ["32-true", exhaustive("bf16-mixed")])
@pytest.mark.parametrize("ssl", builtin_files("ssl"))
@pytest.mark.parametrize(("strategy", "stage"), [("fedssl", 1), ("lw_fedssl", 2)])
def test_flops_are_those_of_a_real_step(tiny: Tiny, ssl: str, strategy: str, stage: int, precision: str) -> None:
    config = tiny(needed(ssl), strategy=strategy, ssl=ssl, precision=precision, augmentation={"blur": [0, 0]})
    task = task_of(config, stage)
    fabric = build_fabric(config.precision, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        assert fit(fabric, task, torch.arange(8), 1, config, "test") == 1
    assert traced(config, stage).flops == counter.get_total_flops() > 0


def test_a_block_costs_what_arithmetic_says(tiny: Tiny) -> None:
    """From depth 2 to 3, all trained: a block more in two views x (online x3 + target x1)."""
    costs = [traced(tiny({"encoder": {"depth": depth}})).flops for depth in (2, 3)]
    assert costs[1] - costs[0] == pytest.approx(2 * 4 * block_flops(width=16, tokens=4, batch=8), rel=0.02)


def test_a_frozen_block_costs_its_forward_passes_alone(tiny: Tiny) -> None:
    """Stage 3 against stage 2 under LW: one frozen block more, forward, two views, for all branches."""
    costs = [traced(tiny(strategy="lw_fedssl"), stage).flops for stage in (2, 3)]
    assert costs[1] - costs[0] == pytest.approx(2 * block_flops(width=16, tokens=4, batch=8), rel=0.02)


def test_flops_grow_with_the_batch(tiny: Tiny) -> None:
    assert traced(tiny(), batch=16).flops > 1.9 * traced(tiny(), batch=8).flops


@pytest.mark.parametrize("strategy", ["fedssl", "lw_fedssl@v3"])
@pytest.mark.parametrize("ssl", builtin_files("ssl"))
def test_the_traced_step_costs_what_the_same_step_on_real_tensors_costs(
    tiny: Tiny, ssl: str, strategy: str
) -> None:
    if not fits((strategy, ssl)):
        pytest.skip(f"{strategy} refuses {ssl}")
    config = tiny(needed(ssl), strategy=strategy, ssl=ssl)
    task = task_of(config, stage=1)
    cost = traced(config, stage=1)
    real = measure_step(task, tuple(map(torch.randn, task.views.shapes(8, SHAPE))), config.precision)
    assert real == replace(cost, keeps={})  # of the visit, of which `real` is a step
    assert sum(cost.memory.values()) == cost.peak_memory_bytes
    assert sum(cost.flops_by_phase.values()) == cost.flops


def test_the_peak_is_listed_by_what_it_consists_of(tiny: Tiny) -> None:
    task = task_of(tiny(strategy="lw_fedssl"), stage=2)
    memory = traced(tiny(strategy="lw_fedssl"), stage=2).memory
    online = task.method.online_state().values()
    trained = sum(weight.nbytes for weight in task.trained.values())
    assert memory["parameters"] == sum(value.nbytes for value in online)
    assert memory["gradients"] == trained
    assert 2 * trained <= memory["optimizer state"] <= 2 * trained + 8 * len(task.trained)  # and step counters
    assert memory["batch"] == 2 * 8 * 64 * 4
    copies = sum(value.nbytes for key, value in task.method.state_dict().items() if key.startswith("target_"))
    assert memory["frozen copies"] == copies


def test_peak_memory_contains_parameters_gradients_and_optimizer_state(tiny: Tiny) -> None:
    config = tiny()
    task = task_of(config)
    everything = sum(parameter.nbytes for parameter in task.parameters())
    trained = sum(parameter.nbytes for parameter in task.trained.values())
    assert traced(config, batch=2).peak_memory_bytes > everything + 3 * trained


def test_training_one_block_needs_less_memory_than_training_all(tiny: Tiny) -> None:
    whole, newest = (
        traced(tiny(strategy=name), stage, batch=64) for name, stage in (("fedssl", 1), ("lw_fedssl", 3))
    )
    assert newest.peak_memory_bytes < 0.8 * whole.peak_memory_bytes
    assert newest.flops < whole.flops


def test_the_meter_follows_storages_not_tensors() -> None:
    start = torch.zeros(100)
    with Meter({"start": [start]}) as meter:
        twice = start * 2  # 400 bytes more
        view = twice[10:]  # no bytes
        third = view + 1  # 360 bytes more
        assert meter.current_bytes == 400 + 400 + 360
        del twice, view
        assert meter.current_bytes == 400 + 360
        third.add_(1)  # in place
        assert meter.current_bytes == 400 + 360
    assert meter.peak_bytes == 400 + 400 + 360
    assert meter.peak() == {"start": 400, "activations": 760}


def test_a_tensor_that_is_used_after_the_peak_counts_at_the_peak_if_it_was_there() -> None:
    """By hand: 400 + 1200 bytes at the peak, 200 that are read when the 1200 are gone, 4000 that nothing reads."""
    start, late, unread = torch.zeros(100), torch.zeros(50), torch.zeros(1000)
    with Meter({"start": [start]}) as meter:
        big = start.repeat(3)
        del big
        small = start[:50] + late
        meter.hold_used("copies", [late, unread])
    assert small.nbytes == 200
    assert meter.peak_bytes == 400 + 1200 + 200
    assert meter.peak() == {"start": 400, "activations": 1200, "copies": 200}


class PeakFirst(Mechanism):
    """Needs a million floats for a moment; `reads`: and then the received values."""

    reads = False

    def local_loss(self, step: LocalStep) -> Tensor:
        loss = step.output["loss"].detach() * torch.zeros(10**6).sum()
        terms = [(weight - step.received[key]).sum() for key, weight in step.trained.items() if self.reads]
        return torch.stack([loss, *terms]).sum()


class ReadsAfterThePeak(PeakFirst):
    reads = True


def test_received_values_count_from_the_beginning_of_the_step_if_a_term_reads_them(tiny: Tiny) -> None:
    costs = []
    for term in (PeakFirst(), ReadsAfterThePeak()):
        task = task_of(tiny(strategy="lw_fedssl"), stage=2)
        task.terms = (term,)
        costs.append(trace_step(task, 8, SHAPE, "32-true"))
    without, with_reference = costs
    trained = sum(weight.nbytes for weight in task.trained.values())
    assert with_reference.memory["frozen copies"] - without.memory["frozen copies"] == trained
    assert with_reference.peak_memory_bytes - without.peak_memory_bytes == trained


def test_a_teacher_that_there_is_not_yet_takes_no_memory(tiny: Tiny) -> None:
    task = task_of(tiny(strategy={"name": "fedssl", "moon": True}))
    one = trace_step(task, 8, SHAPE, "32-true")
    visit = VisitHooks(task, 1, False, {})
    visit.end()
    before = KeptBefore(same_stage=True, specs=tuple(specs_of(visit.kept)))
    both = trace_step(task, 8, SHAPE, "32-true", before=before)
    teacher = sum(value.nbytes for value in task.teachers["received"].state_dict().values())
    assert both.memory["frozen copies"] - one.memory["frozen copies"] == teacher
    of_another_stage = KeptBefore(same_stage=False, specs=before.specs)
    assert trace_step(task, 8, SHAPE, "32-true", before=of_another_stage) == one


def test_tracing_leaves_the_task_as_it_was(tiny: Tiny) -> None:
    task = task_of(tiny())
    before = {key: value.clone() for key, value in task.state_dict().items()}
    trace_step(task, 8, SHAPE, "32-true")
    assert all(torch.equal(before[key], value) for key, value in task.state_dict().items())
    assert all(parameter.grad is None for parameter in task.parameters())


def test_ptflops_agrees_with_the_flop_counter_up_to_norms() -> None:
    from fedbench.config import EncoderConfig

    vit_tiny = EncoderConfig(image_size=32, patch_size=4, width=192, depth=12, heads=3, in_channels=3)
    macs = forward_macs(vit_tiny)
    per_block = block_flops(192, 64, batch=1) // 2
    assert macs["flop_counter"] == 12 * per_block + 64 * 48 * 192  # blocks and patch projection
    assert macs["flop_counter"] <= macs["ptflops"] <= 1.01 * macs["flop_counter"]
