"""What a run was: its configuration, the code that ran it and the machine, without anything personal."""

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import fedbench
from fedbench.config import Config
from fedbench.files import user_path
from fedbench.numerics import PORTABLE, fingerprint
from fedbench.tracking.noted import FORMAT

LIBRARIES = (
    "torch",
    "torchvision",
    "lightning",
    "lightly",
    "timm",
    "torchmetrics",
    "numpy",
    "ptflops",
    "opacus",
    "safetensors",
    "scikit-learn",
    "pydantic",
    "wandb",
)
KERNEL_SETTINGS = (*PORTABLE, "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
SOURCES = ("fedbench", "methods", "configs", "pyproject.toml")  # what can change a result


def manifest(
    config: Config, data_hash: str, sources: Mapping[str, str], device: str, cell_hash: str, cell_name: str
) -> dict[str, Any]:
    """Content of `manifest.json`.

    A path from the root or from `~` in the configuration is shortened to its last part and the W&B entity left
    out, so that run directories can be published; what was there is named by `data_hash`, and by `sources`, the
    hashes of the files that define the strategy and the SSL method.
    """
    return {
        "format": FORMAT,
        "cell_name": cell_name,
        "cell_hash": cell_hash,
        "data_hash": data_hash,
        "sources": dict(sources),
        "device": device,
        "config": _shareable(config.model_dump(mode="json", exclude={"tracking": {"entity"}})),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "fedbench": fedbench.__version__,
        **git_state(Path(fedbench.__file__).parents[1]),
        "libraries": library_versions(),
        **machine(config.accelerator),
    }


def _shareable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_shareable(key): _shareable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shareable(item) for item in value]
    return Path(value).name if isinstance(value, str) and user_path(value).is_absolute() else value


def git_state(source: Path) -> dict[str, Any]:
    """Commit of `source` and whether its tracked or new files differ from it; nulls if it is no checkout.

    Only a repository whose top level is `source` counts: an installed fedbench may lie inside another one.
    """
    commit = _git(source, "rev-parse", "HEAD") if (source / ".git").exists() else None
    changes = _git(source, "status", "--porcelain", "--", *SOURCES) if commit else None
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(source: Path, *words: str) -> str | None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(source), *words], capture_output=True, text=True, check=True, env=environment
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def library_versions() -> dict[str, str | None]:
    """Installed versions; null where a library is missing."""
    versions: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def machine(accelerator: str) -> dict[str, Any]:
    """Python, operating system, processor and, unless the configuration says `cpu`, the accelerator."""
    import torch

    device = torch.accelerator.current_accelerator(check_available=True) if accelerator != "cpu" else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "logical_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "accelerator": _device_name(torch.get_device_module(device)) or device.type if device else None,
        "numerics": numerics(),
    }


def numerics() -> dict[str, Any]:
    """What chooses among kernels that round differently: where it agrees, a configuration has the same bits.

    torch says which vector instructions its own kernels use. oneDNN and MKL choose by the processor and do not say
    what they chose, only what they were told by the environment; the fingerprint is of what they compute.
    """
    import torch

    told = {name: os.environ[name] for name in KERNEL_SETTINGS if name in os.environ}
    return {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "fingerprint": fingerprint(),
        "onednn": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        "mkl": torch.backends.mkl.is_available(),
        "environment": told,
    }


def _device_name(module: Any) -> str | None:
    """As the accelerator's own module tells it; not every one does."""
    return module.get_device_name() if hasattr(module, "get_device_name") else None


def processor_name() -> str:
    """Model name as Linux tells it, elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
