"""What one local step costs, from one traced step on fake tensors: no data, no GPU, nothing is computed.

Convention `step`, from the augmented views on: both views, online branch forward and backward, target branch,
added loss terms. FLOPs are those of matrix products, convolutions and attention; elementwise work (norms,
activations, optimizer, a proximal term) is not counted, nor is augmentation. Memory is of all live tensors.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from fedbench.federation.local import LocalTask
from fedbench.metering.live_memory import LiveMemory


@dataclass(frozen=True)
class StepCost:
    """Cost of one local step.

    Attributes:
        flops: FLOPs of the step; one multiply-add is two.
        peak_memory_bytes: peak of live tensor bytes; optimizer state exists, as in every step but the first.
    """

    flops: int
    peak_memory_bytes: int


def trace_step(task: LocalTask, batch_size: int, image_shape: tuple[int, int, int], precision: str) -> StepCost:
    """Trace a step of `task` on a batch of `batch_size` images of shape (C, H, W)."""
    mode = FakeTensorMode()
    fake = _fake_copy(task, mode)  # outside the mode, inside of which real tensors are refused
    with mode:
        views = (torch.empty(batch_size, *image_shape), torch.empty(batch_size, *image_shape))
        optimizer = fake.configure_optimizers()
        live = LiveMemory([*fake.parameters(), *fake.buffers(), *views])
        with live:
            _create_optimizer_state(fake, optimizer)
            with FlopCounterMode(display=False) as counter:
                _step(fake, optimizer, views, precision)
    return StepCost(counter.get_total_flops(), live.peak_bytes)


def _step(task: LocalTask, optimizer: torch.optim.Optimizer, views: tuple[Tensor, Tensor], precision: str) -> None:
    """In the order of Lightning's loop: old gradients live until the loss is known."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        loss = task.step_loss(views)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    task.method.update_target()


def _create_optimizer_state(task: LocalTask, optimizer: torch.optim.Optimizer) -> None:
    """Leave gradients and optimizer state behind, as a step does."""
    for parameter in task.trained.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def _fake_copy(task: LocalTask, mode: FakeTensorMode) -> LocalTask:
    """The task with fake CPU tensors for its parameters and buffers, and for what it received."""
    method = copy.deepcopy(task.method).cpu()
    fake = LocalTask(method, task.terms, task.optimizer_config, task.views, torch.empty(0))
    for module in fake.modules():
        for name, parameter in module.named_parameters(recurse=False):
            value = nn.Parameter(mode.from_tensor(parameter.detach()), parameter.requires_grad)
            setattr(module, name, value)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, mode.from_tensor(buffer))
    fake.trained = {key: value for key, value in method.named_parameters() if value.requires_grad}
    fake.received = {key: mode.from_tensor(value.detach().cpu()) for key, value in task.received.items()}
    fake.teachers = {name: fake.teachers[name] for name in task.teachers}
    return fake
