"""Faults of placement, planted in the line where each would be made: every one stops the run or is counted."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

import pytest
import torch
from small import Trained
from torch import Tensor

from fedbench.data.pool import HostImages
from fedbench.federation.client import Worker
from fedbench.federation.engines import in_process
from fedbench.random import generator, stream
from fedbench.ssl import SSLMethod
from fedbench.training import local
from fedbench.training.local import LocalTask, Received, build_fabric

pytestmark = pytest.mark.usefixtures("second")
Train = Callable[..., Trained]
Plant = Callable[[pytest.MonkeyPatch], None]
SIXTEEN = {"data": {"num_train": 32}}  # images for each client: four steps


def after(patch: pytest.MonkeyPatch, owner: Any, name: str, more: Callable[..., None]) -> None:
    """Let `owner.name` do `more` with its arguments when it is done."""
    original = getattr(owner, name)

    def both(*arguments: Any) -> Any:
        result = original(*arguments)
        more(*arguments)
        return result

    patch.setattr(owner, name, both)


def a_buffer_stays_on_the_cpu(patch: pytest.MonkeyPatch) -> None:
    def take_back(worker: Worker, *_: object) -> None:
        assert worker.task is not None
        norm = worker.task.method.projection_head.layers[1]
        norm.running_mean = norm.running_mean.cpu()

    after(patch, Worker, "start_stage", take_back)


def the_target_branch_stays_on_the_cpu(patch: pytest.MonkeyPatch) -> None:
    def take_back(worker: Worker, *_: object) -> None:
        assert worker.task is not None
        worker.task.method.target_encoder.cpu()

    after(patch, Worker, "start_stage", take_back)


def a_teacher_stays_on_the_cpu(patch: pytest.MonkeyPatch) -> None:
    def take_back(task: LocalTask, *_: object) -> None:
        for teacher in task.teachers.values():
            teacher.cpu()

    after(patch, LocalTask, "put_away_teachers", take_back)


def the_augmentation_draws_on_the_cpu(patch: pytest.MonkeyPatch) -> None:
    def replace(task: LocalTask, *_: object) -> None:
        task.generator = generator(0, "augment")

    after(patch, LocalTask, "__init__", replace)


def the_shuffling_draws_on_the_device(patch: pytest.MonkeyPatch) -> None:
    def on_device(seed: int, *key: str | int) -> torch.Generator:
        return torch.Generator("standin").manual_seed(stream(seed, *key))

    patch.setattr(local, "generator", on_device)


def received_values_are_not_moved(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Received, "__getitem__", lambda received, key: received.stored[key])


def a_batch_from_main_memory_is_not_moved(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(in_process, "place", HostImages)
    patch.setattr(HostImages, "__getitem__", lambda pool, indices: pool.images[indices])


def the_sums_of_the_losses_are_on_the_cpu(patch: pytest.MonkeyPatch) -> None:
    def replace(task: LocalTask, *_: object) -> None:
        task.losses = torch.zeros(2)

    after(patch, LocalTask, "__init__", replace)


def numpy_reads_a_weight(patch: pytest.MonkeyPatch) -> None:
    def watch(method: SSLMethod) -> None:
        next(method.parameters()).detach().numpy()

    after(patch, SSLMethod, "update_target", watch)


REFUSED = {
    a_buffer_stays_on_the_cpu: "one device",
    the_target_branch_stays_on_the_cpu: "one device",
    a_teacher_stays_on_the_cpu: "one device",
    the_augmentation_draws_on_the_cpu: "expected a 'standin' generator",
    the_shuffling_draws_on_the_device: "expected a 'cpu' generator",
    received_values_are_not_moved: "one device",
    a_batch_from_main_memory_is_not_moved: "'cpu' generator|one device",
    the_sums_of_the_losses_are_on_the_cpu: "one device",
    numpy_reads_a_weight: "numpy",
}


@pytest.mark.parametrize(("plant", "message"), REFUSED.items(), ids=[plant.__name__ for plant in REFUSED])
def test_a_tensor_in_the_wrong_place_stops_the_run(
    train: Train, monkeypatch: pytest.MonkeyPatch, plant: Plant, message: str
) -> None:
    plant(monkeypatch)
    with pytest.raises(RuntimeError, match=message):
        train(SIXTEEN, strategy={"name": "fedssl", "proximal": True, "alignment": True})


def in_every_step(patch: pytest.MonkeyPatch, reading: Callable[[LocalTask, Tensor], object]) -> None:
    original = LocalTask.training_step

    def read(task: LocalTask, *arguments: Any) -> Tensor:
        loss = original(task, *arguments)
        reading(task, loss)
        return loss

    patch.setattr(LocalTask, "training_step", read)


def a_step_takes_an_item(patch: pytest.MonkeyPatch) -> None:
    in_every_step(patch, lambda task, loss: loss.detach().item())


def a_step_asks_whether_the_loss_is_finite(patch: pytest.MonkeyPatch) -> None:
    in_every_step(patch, lambda task, loss: 0 if loss.detach().isfinite() else 1)


def the_losses_are_summed_in_python(patch: pytest.MonkeyPatch) -> None:
    in_every_step(patch, lambda task, loss: sum(task.losses.tolist()))


def a_step_selects_by_a_mask(patch: pytest.MonkeyPatch) -> None:
    in_every_step(patch, lambda task, loss: task.projections[task.projections > 0].sum())


def a_step_compares_weights(patch: pytest.MonkeyPatch) -> None:
    in_every_step(patch, lambda task, loss: torch.equal(*list(task.trained.values())[:1] * 2))


@pytest.mark.parametrize(
    "plant",
    [
        a_step_takes_an_item,
        a_step_asks_whether_the_loss_is_finite,
        the_losses_are_summed_in_python,
        a_step_selects_by_a_mask,
        a_step_compares_weights,
    ],
)
def test_a_value_that_a_step_reads_is_counted(train: Train, monkeypatch: pytest.MonkeyPatch, plant: Plant) -> None:
    plant(monkeypatch)
    assert {trained.waits for trained in train(SIXTEEN, strategy="fedssl").crossed} == {4}


def test_indices_that_stay_on_the_cpu_are_a_copy_in_every_step(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of the four: copies are counted from the second step on."""
    monkeypatch.setattr(in_process, "beside", lambda images, indices: indices)
    assert {trained.copies for trained in train(SIXTEEN, strategy="fedssl").crossed} == {3}


def test_batches_from_main_memory_are_copied_and_nothing_is_waited_for(
    train: Train, monkeypatch: pytest.MonkeyPatch, second: ModuleType
) -> None:
    whole = train(SIXTEEN, strategy="fedssl")
    monkeypatch.setattr(in_process, "place", HostImages)
    batches = train(SIXTEEN, strategy="fedssl")
    assert {(trained.waits, trained.copies) for trained in batches.crossed} == {(0, 3)}
    assert all(torch.equal(value, batches.values[key]) for key, value in whole.values.items())


def test_the_small_federation_without_a_fault_is_refused_nothing(train: Train) -> None:
    done = train(SIXTEEN, strategy={"name": "fedssl", "proximal": True, "alignment": True})
    assert {trained.waits for trained in done.crossed} == {0}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_mixed_precision_is_that_of_the_device(precision: Literal["32-true", "bf16-mixed"]) -> None:
    fabric = build_fabric(precision, torch.device("standin"))
    with fabric.autocast():
        assert torch.is_autocast_enabled("standin") == (precision == "bf16-mixed")
        assert not torch.is_autocast_enabled("cpu")


def test_noise_on_the_device_comes_from_the_clients_own_stream(second: ModuleType) -> None:
    ones = torch.ones(50, device="standin")
    draws = []
    for seed in (7, 7, 8):
        local._seed_noise(seed, second.DEVICE)
        draws.append(torch.nn.functional.dropout(ones))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
