"""Fixtures for all tests."""

import gc
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any
from zlib import crc32

import pytest
import torch
from tiny_config import TINY

from fedbench.config import Config, load_config
from fedbench.metering.step import StepCost
from fedbench.training.local import LocalTask
from fedbench.training.visit import KeptBefore


def pytest_configure(config: pytest.Config) -> None:
    gc.set_threshold(50_000, 20, 100)  # a collection of all that was imported takes half a second
    config.addinivalue_line("markers", "exhaustive: `make test` leaves it out, for its time")
    config.addinivalue_line("markers", "stress: one more of many; only `make stress` runs it")
    config.addinivalue_line("markers", "costs: with traced steps, a quarter of a second for each kind of step")
    config.addinivalue_line("markers", "dry_run: with the dry run of plugins, which takes a second for each")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # tiny tensors gain nothing from a second thread


@pytest.fixture(autouse=True, scope="session")
def _decoded_images_go_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _without_dry_run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of tests have a configuration of their own; those of the dry run and of `check` are marked."""
    if request.node.get_closest_marker("dry_run") is None:
        monkeypatch.setattr("fedbench.federation.experiment.dry_run", lambda *_: None)


@pytest.fixture(autouse=True)
def _without_traces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a tiny run's time is tracing: tests of what a run costs are marked, the others have a stand-in."""
    if request.node.get_closest_marker("costs") is None:
        monkeypatch.setattr("fedbench.federation.costs.trace_step", _cost_of_what_was_asked)
        monkeypatch.setattr("fedbench.federation.costs.trace_edit", lambda *_: StepCost(1, 1, {}, {}))


def _cost_of_what_was_asked(
    task: LocalTask,
    batch_size: int,
    image_shape: tuple[int, int, int],
    precision: str,
    run: Sequence[int],
    trained_groups: Set[str],
    stage: int,
    before: KeptBefore,
    way: str,
) -> StepCost:
    """No cost that a step could have; equal where two runs ask for the same, and not where they do not."""
    asked = batch_size, image_shape, precision, tuple(run), sorted(trained_groups), stage, before, way
    figure = crc32(repr(asked).encode())
    return StepCost(figure, figure, {}, {})


@pytest.fixture
def tiny() -> Callable[..., Config]:
    """`tiny({"ssl": "byol"}, seed=1)`: the tiny configuration with something else in it."""

    def build(*trees: dict[str, Any], **keys: Any) -> Config:
        return load_config(TINY, *trees, keys)

    return build
