"""Federations on a second device, small enough that all combinations take minutes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from small import REAL, SMALL, Crossed, Trained
from tiny_config import TINY
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedbench.config import load_config
from fedbench.federation import client, server_training
from fedbench.federation.experiment import prepare
from fedbench.federation.federation import Federation
from fedbench.training.local import LocalTask

if not REAL:
    import stand_in


@pytest.fixture
def second() -> Iterator[ModuleType]:
    """The stand-in, switched on."""
    if REAL:
        pytest.skip("torch has an accelerator of its own")
    with stand_in.switched_on():
        yield stand_in


@pytest.fixture
def accelerator() -> Iterator[None]:
    """`accelerator=auto` is one: this machine's, or the stand-in."""
    if REAL:
        yield
        return
    with stand_in.switched_on():
        yield


@pytest.fixture(autouse=True)
def _plain_attention() -> Iterator[None]:
    """One kernel on both sides: the fused one of the CPU rounds otherwise."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trained]:
    """`train({"strategy": "fedssl"})`: run the small federation with something else in it."""
    crossed: list[Crossed] = []
    if not REAL:
        _watch(monkeypatch, crossed)

    def run(*trees: dict[str, Any], **keys: Any) -> Trained:
        crossed.clear()
        config = load_config(TINY, SMALL, *trees, keys)
        done = Trained(Federation(prepare(config), tmp_path / f"{len(list(tmp_path.iterdir()))}"))
        done.records, done.crossed = list(done.federation.rounds()), list(crossed)
        return done

    return run


def _watch(monkeypatch: pytest.MonkeyPatch, crossed: list[Crossed]) -> None:
    """Note what crosses over in every local training, of clients and server."""
    fit, training_step = client.fit, LocalTask.training_step
    before_steps: list[int] = []  # copies to the device until each step of the training under way

    def noted_step(task: LocalTask, *arguments: Any) -> torch.Tensor:
        before_steps.append(stand_in.counts.to_device)
        return training_step(task, *arguments)

    def noted_fit(*arguments: Any) -> int:
        before_steps.clear()
        waits = stand_in.counts.waits
        taken = fit(*arguments)
        now = stand_in.counts
        crossed.append(Crossed(now.waits - waits, now.to_device - [*before_steps, now.to_device][1]))
        return taken

    monkeypatch.setattr(LocalTask, "training_step", noted_step)
    for module in (client, server_training):
        monkeypatch.setattr(module, "fit", noted_fit)
