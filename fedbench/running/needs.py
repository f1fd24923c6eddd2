"""What a cell asks of a machine: its cores, and its share of a GPU, of which those that fit together share one."""

from typing import NamedTuple

import torch

from fedbench.config import Config
from fedbench.errors import UserError
from fedbench.federation.engines.processes import num_workers
from fedbench.federation.experiment import Experiment, choose_device, prepare
from fedbench.metering.costs import StepCosts
from fedbench.profiling.profile import profile

# No trace sees the CUDA context, libraries' workspaces, and the probe, which is not predicted.
UNSEEN_BYTES, SLACK_PERCENT = 1 << 30, 150
GIB = 1 << 30


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
    devices = range(torch.cuda.device_count())
    total = min(torch.cuda.get_device_properties(one).total_memory for one in devices)
    return gpu_share(on_device(experiment, costs) * num_processes(config), total)


def gpu_share(bytes_of_all: int, device_bytes: int) -> float:
    """The share of a device of `device_bytes`, in hundredths, rounded up; at most 1."""
    return min(-(-bytes_of_all * 100 // device_bytes), 100) / 100


def num_processes(config: Config) -> int:
    """That have the images of a cell, and a model, on the device: the workers, and the one that has the server."""
    return 1 + num_workers(config) if config.engine == "processes" else 1


def on_device(experiment: Experiment, costs: StepCosts | None = None) -> int:
    """Bytes of a device's memory that one process of a cell is given."""
    samples = [len(indices) for indices in experiment.client_indices]
    server = {name: len(images) for name, images in experiment.auxiliary.items()}
    cost = profile(experiment.config, samples, costs=costs, server_samples=server, tried=True)
    return with_slack(
        max(cost.peak_memory_bytes, cost.server_peak_memory_bytes) + experiment.dataset.train_images.nbytes
    )


def with_slack(peak_bytes: int) -> int:
    """What is set aside for a predicted peak."""
    return -(-peak_bytes * SLACK_PERCENT // 100) + UNSEEN_BYTES


def check_room(experiment: Experiment) -> None:
    """UserError: worker processes that share the device of a cell do not fit into its memory."""
    config, device = experiment.config, experiment.device
    if config.engine != "processes" or device.type == "cpu":
        return
    each, there, count = on_device(experiment), torch.accelerator.get_memory_info(device)[1], num_processes(config)
    if each * count > there:
        most = there // each - 1
        workers = f"workers={most} or fewer, or " if most > 0 else ""
        raise UserError(
            f"engine=processes workers={count - 1} on accelerator={device.type}: {count} processes, with the "
            f"server's, take {each / GIB:.1f} GiB each of its {there / GIB:.1f}; "
            f"allowed: {workers}engine=in_process"
        )
