"""Memory of one client's training on a GPU: the allocator's peaks, and beside them what the driver says.

Three figures that differ by design: `max_memory_allocated` (live tensors), `max_memory_reserved` (with the
allocator's cache and rounding) and NVML's figure of the process (with the CUDA context and every library's
workspace). Where there is no GPU they are absent, never zero; where it is none of CUDA's, NVML's is.

While a client trains, the device holds what the client has, and the pool of all clients' images. The server's
model and images, and what was received beyond what a loss term reads, are on the CPU.
"""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch


@dataclass(frozen=True)
class CudaMemory:
    """Bytes, the pool of images included.

    `process_bytes` is None where NVML does not know this process, as inside most containers.
    """

    max_allocated_bytes: int
    max_reserved_bytes: int
    process_bytes: int | None


def largest(figures: Iterable[CudaMemory]) -> dict[str, int | None]:
    """`cuda_max_allocated_bytes` and so on: the largest of each figure; None where nobody has it."""
    rows = [asdict(figure) for figure in figures]
    names = ("max_allocated_bytes", "max_reserved_bytes", "process_bytes")
    known = {name: [row[name] for row in rows if row[name] is not None] for name in names}
    return {f"cuda_{name}": max(values, default=None) for name, values in known.items()}


def start(device: torch.device) -> None:
    """Open the bracket: forget earlier peaks, and the cache that earlier clients left."""
    if device.type != "cpu":
        torch.accelerator.empty_cache()
        torch.accelerator.reset_peak_memory_stats(device)


def read(device: torch.device) -> CudaMemory | None:
    """Close the bracket, while all that the training needs is still there.

    None on a CPU, and on a device whose allocator does not tell torch: it says 0.
    """
    allocated = 0 if device.type == "cpu" else torch.accelerator.max_memory_allocated(device)
    if not allocated:
        return None
    reserved = torch.accelerator.max_memory_reserved(device)
    return CudaMemory(allocated, reserved, _process_bytes(device) if device.type == "cuda" else None)


def _process_bytes(device: torch.device) -> int | None:
    """NVML's figure now, not a peak: the allocator has kept what it reserved."""
    import pynvml  # not needed without a GPU of CUDA's

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return None
    found = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
    return found[0] if found else None
