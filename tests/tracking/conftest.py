"""Hand-made finished runs, and a W&B without an account."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from wandb_stand_in import StandIn, stand_in

from fedbench.config import config_hash, load_config
from fedbench.tracking import wandb_server
from fedbench.tracking.run_directory import RunDirectory


def make_summary(strategy: str, ssl: str, cost: float = 1.0) -> dict[str, Any]:
    """A summary whose four costs are 8e9 FLOPs, 3 MiB, 5 MB and 2 MB, times `cost`."""
    return {
        "strategy": strategy,
        "ssl": ssl,
        "convention": "step",
        "diverged": False,
        "memory_source": "traced live tensors, CPU",
        "client/flops": 8e9 * cost,
        "client/local_steps": 24.0,
        "all_clients/flops": 40e9 * cost,
        "server/flops": 2e9 * cost,
        "server/peak_memory_bytes": int(4 * 2**20 * cost),
        "client/peak_memory_bytes": int(3 * 2**20 * cost),
        "client/download_bytes": 5e6 * cost,
        "client/upload_bytes": 2e6 * cost,
        "seconds": 12.5,
        "rounds": 4,
    }


def make_evaluations(protocols: tuple[str, ...], data_hash: str, top1: float) -> dict[str, Any]:
    """What a summary says of each protocol; all give the same figures."""
    facts = {"settings": {"epochs": 100}, "data": "digits", "data_hash": data_hash}
    figures = {f"probe/{name}_top1": top1 for name in protocols}
    figures |= {f"untrained/{name}_top1": 0.5 for name in protocols}
    return {"evaluations": [{"protocol": name, **facts} for name in protocols], **figures}


@pytest.fixture
def fake_run(tmp_path: Path) -> Callable[..., RunDirectory]:
    """Write a finished run under `tmp_path / "runs"`; `figures` replace those of the summary."""

    def write(
        strategy: str,
        top1: float,
        *,
        seed: int = 0,
        ssl: str = "moco_v3",
        cost: float = 1.0,
        overrides: dict[str, Any] | None = None,
        figures: dict[str, Any] | None = None,
        data_hash: str = "d1",
        protocols: tuple[str, ...] = ("linear",),
    ) -> RunDirectory:
        config = load_config({"seed": seed}, overrides or {})
        names = {"strategy": {"name": strategy}, "ssl": config.ssl.model_copy(update={"name": ssl})}
        config = config.model_copy(update=names)  # of plugins that need not be there
        directory = RunDirectory(tmp_path / "runs" / f"{strategy}-{config_hash(config)}-{data_hash}")
        manifest = {"config": config.model_dump(mode="json"), "cell_hash": config_hash(config)}
        manifest |= {"device": "cpu", "sources": {"strategy": strategy, "ssl": "s"}, "started": str(seed)}
        directory.start({**manifest, "data_hash": data_hash, "processor": "abacus", "accelerator": None})
        summary = {**make_summary(strategy, ssl, cost), **make_evaluations(protocols, data_hash, top1)}
        directory.finish({**summary, **(figures or {})}, {"w": torch.ones(2)})
        return directory

    return write


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither an account nor a place to leave files outside `tmp_path`; a W&B that remembers nothing."""
    import wandb

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "NETRC", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(wandb_server, "SERVER", wandb_server.Server())
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def server(nobody: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A W&B server on this machine, and an account there."""
    with stand_in() as running:
        monkeypatch.setenv("WANDB_BASE_URL", running.url)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield running
