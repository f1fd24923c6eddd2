"""The stand-in itself: what a GPU refuses it refuses, what a GPU waits for it counts."""

import copy
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from small import REAL
from torch import nn


def on_device(*shape: int) -> torch.Tensor:
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape).to("standin")


@pytest.mark.parametrize(
    "mixed",
    [
        lambda ours: ours + torch.ones(3),
        lambda ours: torch.cat([ours, torch.ones(3)]),
        lambda ours: torch.ones(3).add_(ours),
        lambda ours: torch.stack([torch.ones(3), ours]),
        lambda ours: nn.functional.linear(ours, torch.ones(2, 3)),
        lambda ours: ours.numpy(),
        lambda ours: torch.rand(3, device=ours.device, generator=torch.Generator()),
        lambda ours: torch.rand(3, generator=torch.Generator(ours.device)),
    ],
)
def test_two_devices_in_one_operation_are_refused(second: ModuleType, mixed: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match=r"one device|'(cpu|standin)' generator|numpy"):
        mixed(on_device(3))


def test_a_scalar_of_the_host_is_no_second_device(second: ModuleType) -> None:
    assert (on_device(3) + torch.tensor(1.0)).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("reading", "waits"),
    [
        (lambda ours: ours.sum().item(), 1),
        (lambda ours: float(ours.sum()), 1),
        (lambda ours: bool(ours.sum() > 1), 1),
        (lambda ours: ours.cpu(), 1),
        (lambda ours: ours.tolist(), 1),
        (lambda ours: torch.ones(3).copy_(ours), 1),
        (lambda ours: ours[ours > 1], 1),
        (lambda ours: torch.equal(ours, ours), 1),
        (lambda ours: ours.nonzero(), 1),
        (lambda ours: ours.sum() + ours[1:], 0),
    ],
)
def test_what_python_reads_is_counted(second: ModuleType, reading: Callable[..., Any], waits: int) -> None:
    ours = on_device(3)
    reading(ours)
    assert second.counts.waits == waits


@pytest.mark.parametrize(
    ("sending", "copies"),
    [
        (lambda ours: torch.ones(3).to(ours.device), 1),
        (lambda ours: ours.copy_(torch.ones(3)), 1),
        (lambda ours: ours[torch.tensor([0, 2])], 1),
        (lambda ours: ours[torch.arange(2, device=ours.device)], 0),
        (lambda ours: torch.ones_like(ours), 0),
    ],
)
def test_what_is_sent_to_the_device_is_counted(
    second: ModuleType, sending: Callable[..., Any], copies: int
) -> None:
    ours = on_device(3)
    before = second.counts.to_device
    sending(ours)
    assert second.counts.to_device - before == copies


def test_the_allocator_counts_storages_while_they_live(second: ModuleType) -> None:
    start = second.allocator.current
    ours = on_device(100)
    view, second.allocator.peak = ours[10:], 0
    double = view * 2
    assert second.allocator.current - start == 400 + 360
    assert second.allocator.peak - start == 400 + 360
    del ours, double
    assert second.allocator.current - start == 400  # the view keeps the storage
    assert second.allocator.peak - start == 400 + 360


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def test_a_network_trains_to_the_cpus_bits(second: ModuleType) -> None:
    images = torch.rand(5, 3)
    models = [network(), network().to("standin")]
    for model in models:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            loss = model(images.to(next(model.parameters()).device)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    cpu, ours = (model.state_dict() for model in models)
    assert all(torch.equal(cpu[key], ours[key].cpu()) for key in cpu)


def test_a_module_that_moves_there_and_back_keeps_its_parameters(second: ModuleType) -> None:
    model = network()
    parameters = list(model.parameters())
    for place in ("standin", "cpu"):
        model.to(place)
        assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
        assert {value.device.type for value in model.state_dict().values()} == {place}


def test_a_deep_copy_has_values_of_its_own(second: ModuleType) -> None:
    model = network().to("standin")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.zero_()
    assert isinstance(other[0].weight, nn.Parameter)
    assert not torch.equal(model[0].weight, other[0].weight)


def test_draws_without_a_generator_come_from_the_devices_own(second: ModuleType) -> None:
    ours = on_device(50)
    torch.get_device_module(second.DEVICE).manual_seed(3)
    torch.default_generator.manual_seed(1)
    first = nn.functional.dropout(ours)
    torch.get_device_module(second.DEVICE).manual_seed(3)
    torch.default_generator.manual_seed(2)
    assert torch.equal(first, nn.functional.dropout(ours))
    assert not torch.equal(first, nn.functional.dropout(ours))


def test_switched_off_it_is_no_accelerator() -> None:
    assert REAL or torch.accelerator.current_accelerator(check_available=True) is None
