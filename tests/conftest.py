"""Fixtures for all tests."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny_config import TINY

from fedbench.config import Config, load_config


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "exhaustive: another case shows the same; `make test` leaves it out")
    config.addinivalue_line("markers", "stress: one more of many; only `make stress` runs it")
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


@pytest.fixture
def tiny() -> Callable[..., Config]:
    """`tiny({"ssl": "byol"}, seed=1)`: the tiny configuration with something else in it."""

    def build(*trees: dict[str, Any], **keys: Any) -> Config:
        return load_config(TINY, *trees, keys)

    return build
