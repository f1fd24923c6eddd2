"""What a cell asks of a cluster: its cores, and its share of a GPU. Cells that fit together share one."""

from typing import NamedTuple

import torch

from fedbench.config import Config
from fedbench.errors import UserError
from fedbench.federation.experiment import choose_device, prepare
from fedbench.metering.costs import StepCosts
from fedbench.profiling.profile import profile

# No trace sees the CUDA context, libraries' workspaces, and the probe, which is not predicted.
UNSEEN_BYTES, SLACK_PERCENT = 1 << 30, 150


class Needs(NamedTuple):
    """Of one cell; `gpus` is a share of one."""

    cpus: int
    gpus: float


def needs(config: Config, costs: StepCosts) -> Needs:
    """Of a cell; `costs` as for `profile`.

    Raises:
        UserError: they cannot be told, or a cluster has no such device.
    """
    device = choose_device(config.accelerator).type
    if device not in ("cpu", "cuda"):
        raise UserError(f"accelerator={device} with --engine ray; allowed: cpu, cuda")
    return Needs(_cpus(config), _gpus(config, costs) if device == "cuda" else 0)


def _cpus(config: Config) -> int:
    if config.engine == "in_process":
        return config.threads
    if config.engine != "processes":
        raise UserError(f"engine={config.engine} with --engine ray; allowed: in_process, processes")
    if config.workers is None:
        raise UserError(
            "engine=processes with --engine ray and no workers; allowed: workers=N, which nodes can plan"
        )
    return config.workers * config.threads


def _gpus(config: Config, costs: StepCosts) -> float:
    experiment = prepare(config, tried=True)
    samples = [len(indices) for indices in experiment.client_indices]
    server = {name: len(images) for name, images in experiment.auxiliary.items()}
    cost = profile(config, samples, costs=costs, server_samples=server)
    peak = max(cost.peak_memory_bytes, cost.server_peak_memory_bytes) + experiment.dataset.train_images.nbytes
    devices = range(torch.cuda.device_count())
    return gpu_share(peak, min(torch.cuda.get_device_properties(one).total_memory for one in devices))


def gpu_share(peak_bytes: int, device_bytes: int) -> float:
    """The share of a device of `device_bytes` for a predicted peak, in hundredths, rounded up; at most 1."""
    percent = -(-(peak_bytes * SLACK_PERCENT + UNSEEN_BYTES * 100) // device_bytes)
    return min(percent, 100) / 100
