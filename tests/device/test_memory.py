"""What the allocator holds while a client trains: what that client has, and the pool of images."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from exhaustive import exhaustive
from small import Trained

from fedbench.federation import client
from fedbench.training.local import LocalTask

Train = Callable[..., Trained]
FOUR_ROUNDS = {"federation": {"rounds": 4}}
CASES: list[Any] = [
    exhaustive({"strategy": "fedssl"}),
    exhaustive({"strategy": "lw_fedssl@v3"}),
    exhaustive({"strategy": {"name": "prog_fedssl", "proximal": True}}),
    exhaustive({"strategy": {"name": "lw_fedssl@v4", "moon": True}}),
    # a client without a previous model trains after one that has one
    {
        "strategy": {"name": "fedssl", "moon": True},
        "federation": {"num_clients": 5, "participants": 3},
        "data": {"num_train": 50},
    },
]


def num_bytes(*modules: torch.nn.Module) -> int:
    """Of parameters and buffers, by hand."""
    return sum(value.nbytes for module in modules for value in (*module.parameters(), *module.buffers()))


def clients_own(task: LocalTask) -> int:
    """A client's model with its target branch, the teachers that there are, and what a proximal term reads."""
    reads = any(type(term).__name__ == "Proximal" for term in task.terms)
    reference = sum(value.nbytes for value in task.trained.values()) if reads else 0
    return num_bytes(task.method, *task.teachers.values()) + reference


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch, second: ModuleType) -> list[tuple[int, int]]:
    """At the first step of a visit: bytes that the device holds, and bytes that a client has.

    From a stage's second visit on: the first one finds out what a loss term reads.
    """
    found: list[tuple[int, int]] = []
    seen: set[int] = set()
    step = LocalTask.training_step

    def noted(task: LocalTask, indices: torch.Tensor, *rest: Any) -> torch.Tensor:
        is_first_step = bool(task.terms) and not task.losses.any()  # the server's task has no terms
        if is_first_step and id(task) in seen:
            found.append((second.allocator.current - task.images.nbytes, clients_own(task)))
        seen.update([id(task)] * is_first_step)
        return step(task, indices, *rest)

    monkeypatch.setattr(LocalTask, "training_step", noted)
    return found


INDICES = 200  # bytes, at most: ten indices of images, their order, and the sums of the losses


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["strategy"]))
def test_while_a_client_trains_the_device_holds_what_the_client_has(
    train: Train, held: list[tuple[int, int]], case: dict[str, Any]
) -> None:
    train(FOUR_ROUNDS, case)
    assert len(held) >= 6
    assert all(0 <= device - own <= INDICES for device, own in held)


@pytest.mark.costs
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["strategy"]))
def test_the_measured_peak_is_the_traced_one(train: Train, second: ModuleType, case: dict[str, Any]) -> None:
    done, on_cpu = train(FOUR_ROUNDS, case), train(FOUR_ROUNDS, case, accelerator="cpu")
    assert {record.memory_source for record in done.records} == {"CUDA allocator"}
    measured = [record.peak_memory_bytes for record in done.records]
    assert measured == pytest.approx([record.peak_memory_bytes for record in on_cpu.records], rel=0.02)


def the_servers_model_stays(patch: pytest.MonkeyPatch) -> None:
    to = torch.nn.Module.to
    patch.setattr(torch.nn.Module, "to", lambda module, place: module if place == "cpu" else to(module, place))


def what_came_as_payload_is_on_the_device(patch: pytest.MonkeyPatch) -> None:
    decode = client.decode
    patch.setattr(client, "decode", lambda data: {key: value.to("standin") for key, value in decode(data).items()})


def gradients_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.optim.AdamW, "zero_grad", lambda optimizer: None)


@pytest.mark.parametrize("plant", [the_servers_model_stays, what_came_as_payload_is_on_the_device, gradients_stay])
def test_what_is_not_the_clients_would_be_seen(
    train: Train,
    held: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[pytest.MonkeyPatch], None],
) -> None:
    plant(monkeypatch)
    train(FOUR_ROUNDS, strategy="lw_fedssl@v3")
    assert max(device - own for device, own in held) > INDICES
