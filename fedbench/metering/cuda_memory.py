"""CUDA memory of one client's training: the allocator's peaks, and beside them what the driver says.

Three figures that differ by design: `max_memory_allocated` (live tensors), `max_memory_reserved` (with the
allocator's cache and rounding) and NVML's figure of the process (with the CUDA context and every library's
workspace). Where there is no GPU they are absent, never zero.
"""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch


@dataclass(frozen=True)
class CudaMemory:
    """Bytes. `process_bytes` is None where NVML does not know this process, as inside most containers."""

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
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def read(device: torch.device) -> CudaMemory | None:
    """Close the bracket, while all that the training needs is still there; None on a CPU."""
    if device.type != "cuda":
        return None
    allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return CudaMemory(allocated, reserved, _process_bytes(device))


def _process_bytes(device: torch.device) -> int | None:
    """NVML's figure now, not a peak: the allocator has kept what it reserved."""
    import pynvml  # not needed without a GPU

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return None
    found = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
    return found[0] if found else None
