"""What one local step costs, from one traced step on fake tensors: no data, no GPU, nothing is computed.

Convention `step`, from the augmented views on: both views, online branch forward and backward, target branch,
added loss terms. FLOPs are those of matrix products, convolutions and attention; elementwise work (norms,
activations, optimizer, a proximal term) is not counted, nor is augmentation. Memory is of all live tensors.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fedbench.encoders.tensor_groups import is_target, travelling
from fedbench.metering.meter import Meter
from fedbench.training.local import LocalTask, Received, build_fabric, gradient_on, no_gradient, take_step
from fedbench.training.server_edit import Edit, apply_edit
from fedbench.training.visit import (
    NOTHING_KEPT,
    KeptBefore,
    KeptSpec,
    VisitHooks,
    blank,
    by_position,
    empty_tensors,
)


@dataclass(frozen=True)
class StepCost:
    """Cost of one local step, and of what a visit does around its steps.

    Attributes:
        flops: FLOPs of the step; one multiply-add is two.
        peak_memory_bytes: peak of live tensor bytes, in a step or around the steps; in a step optimizer state
            exists, as in every step but the first.
        flops_by_phase: `forward with gradient` (online branch), `forward without gradient` (shared frozen blocks,
            target branch, teachers), `backward`.
        memory: bytes at the peak: `parameters`, `frozen copies` (target branch, teachers, and the received
            values and messages where a term reads them), `gradients`, `optimizer state`, `batch`, `activations`.
        around_flops: FLOPs of `begin_visit` and `end_visit`, once a visit.
        keeps: what the client keeps behind the visit, by plugin and part; blocks are named by their position among
            those that are run.
    """

    flops: int
    peak_memory_bytes: int
    flops_by_phase: Mapping[str, int]
    memory: Mapping[str, int]
    around_flops: int = 0
    keeps: Mapping[tuple[str, str], tuple[KeptSpec, ...]] = field(default_factory=dict)

    def of_visit(self, num_steps: int) -> int:
        """FLOPs of a whole visit."""
        return self.flops * num_steps + self.around_flops


def trace_step(
    task: LocalTask,
    batch_size: int,
    image_shape: tuple[int, int, int],
    precision: str,
    run: Sequence[int] | None = None,
    trained_groups: Set[str] | None = None,
    stage: int = 1,
    before: KeptBefore = NOTHING_KEPT,
    way: str = "",
) -> StepCost:
    """Trace a visit: what its plugins do around the steps, and a step on a batch of images of shape (C, H, W).

    The task stays as it is.

    Args:
        run: blocks that are run, of which `trained_groups` are trained; None: as the task is now.
        stage: 1-based.
        before: what the client had kept when the visit began.
        way: through the encoder, with `run`; "": those that the SSL method chooses.
    """
    with FakeTensorMode():
        fake = _fake_copy(task)
        if run is not None and trained_groups is not None:
            fake.narrow(run, trained_groups, way)
        draw = blank(fake, image_shape)
        hooks = VisitHooks(fake, stage, before.same_stage, empty_tensors(before.specs), draw=draw)
        shapes = task.views.shapes(batch_size, image_shape)
        fabric = build_fabric(precision, torch.device("cpu"))
        fake.batch_gradient = partial(gradient_on, fabric, fake, lambda: tuple(map(torch.empty, shapes)))
        around = [_measure(fake, hooks.begin)]
        views = tuple(map(torch.empty, shapes))
        step = measure_step(fake, views, precision)
        around.append(_measure(fake, hooks.end))
        highest = max((step, *around), key=lambda cost: cost.peak_memory_bytes)
        blocks = range(len(fake.method.encoder.blocks)) if run is None else run
        keeps = {part: by_position(specs, blocks) for part, specs in hooks.replaced.items()}
        return replace(
            step,
            peak_memory_bytes=highest.peak_memory_bytes,
            memory=highest.memory,
            around_flops=sum(cost.flops for cost in around),
            keeps=keeps,
        )


def trace_edit(task: LocalTask, function: Edit, images: tuple[int, int, int, int]) -> StepCost:
    """Trace an edit of a model, with images of shape (N, C, H, W); model and task stay as they are.

    Memory: of the model, these images, and what the edit makes of them.
    """
    with FakeTensorMode():
        fake, inputs = _fake_copy(task), torch.empty(images, dtype=torch.uint8)
        return _measure(fake, lambda: apply_edit(fake.method, function, inputs))


def _measure(task: LocalTask, action: Callable[[], None]) -> StepCost:
    """Meter what a visit does around its steps."""
    meter = Meter(_alive(task))
    with meter:
        action()
    return StepCost(sum(meter.flops.values()), meter.peak_bytes, dict(meter.flops), meter.peak())


def _alive(task: LocalTask) -> dict[str, Iterable[Tensor]]:
    """What a client has, by label."""
    parts = [task.method, *task.teachers.values()]
    return {
        "frozen copies": [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())],
        "parameters": [
            tensor for key, tensor in task.method.state_dict(keep_vars=True).items() if not is_target(key)
        ],
    }


def measure_step(task: LocalTask, views: tuple[Tensor, ...], precision: str) -> StepCost:
    """Meter one step of `task`, on whatever kind of tensors it is made of."""
    fabric = build_fabric(precision, torch.device("cpu"))
    optimizer = task.configure_optimizers()
    meter = Meter(_alive(task) | {"batch": views})
    trained = task.trained.values()
    with meter:
        _create_optimizer_state(task, optimizer)
        meter.label("gradients", (weight.grad for weight in trained if weight.grad is not None))
        meter.label("optimizer state", _state(optimizer))
        meter.flops.clear()
        take_step(fabric, task, optimizer, partial(task.step_loss, views), meter.enter)
        meter.label("gradients", (weight.grad for weight in trained if weight.grad is not None))
        provided = (tensor for values in task.provided.values() for tensor in values.values())
        meter.hold_used("frozen copies", [*task.received.stored.values(), *provided, *task.masks.values()])
    return StepCost(sum(meter.flops.values()), meter.peak_bytes, dict(meter.flops), meter.peak())


def _create_optimizer_state(task: LocalTask, optimizer: torch.optim.Optimizer) -> None:
    """Leave gradients and optimizer state behind, as a step does."""
    for parameter in task.trained.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def _state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    states = optimizer.state.values()
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]


def _fake_copy(task: LocalTask) -> LocalTask:
    """The task with fake CPU tensors for its parameters and buffers, and for what it received."""
    real = {id(tensor): tensor for tensor in [*task.parameters(), *task.buffers()]}
    replaced: dict[int, object] = {number: _fake(tensor) for number, tensor in real.items()}
    own = task.method.state_dict(keep_vars=True)
    received = {key: _fake(value) for key, value in own.items() if not is_target(key)}
    said = travelling(task.message_specs, "download")
    received |= {key: torch.empty(spec.shape, dtype=spec.dtype) for key, spec in said.items()}
    replaced[id(task.received)] = Received(received, torch.device("cpu"))
    replaced |= {id(task.provided): {}, id(task.said): {}, id(task.masks): {}}  # of a visit that was
    replaced |= {id(task.new_codec_state): {}, id(task.batch_gradient): no_gradient}
    replaced[id(task.codec_state)] = {
        key: torch.empty(value.shape, dtype=value.dtype) for key, value in task.codec_state.items()
    }
    shared = (task.images, task.generator, task.views, task.terms, task.optimizer_config)
    untouched = (*shared, task.losses, task.projections)  # by a step of `step_loss`
    replaced |= {id(value): value for value in untouched}
    return copy.deepcopy(task, replaced)


def _fake(tensor: Tensor) -> Tensor:
    """Made inside a FakeTensorMode: shape, strides and type of `tensor`, and no values."""
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
