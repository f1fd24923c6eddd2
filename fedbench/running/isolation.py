"""A cell leaves the process as it found it: what a plugin sets reaches neither the next cell nor the caller.

Put back are the generators, torch's settings, the folder, the environment, and what Python keeps for a process.
Nobody can put back what a plugin writes over in other modules; `--jobs 2` runs cells in processes of their own.
"""

import locale
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import backends

from fedbench import stopping
from fedbench.errors import UserError
from fedbench.exits import blame, no_sudden_exit
from fedbench.random import stream

T = TypeVar("T")
R = TypeVar("R")
Restore = Callable[[], object]
Setting = tuple[Callable[[], Any], Callable[[Any], object]]  # how it is read, how it is set
DEVICES = ("cpu", "cuda")  # of autocast
OPERATIONS = ("all", "matmul", "conv", "rnn")
PRECISIONS = [("generic", "all"), *((of, operation) for of in ("cuda", "mkldnn") for operation in OPERATIONS)]


def snapshot() -> Restore:
    """What this process is set to now: a function that sets it so again."""
    kinds = (_generators, _torch_settings, _python, _warnings, _signals, _folder, _environment)
    parts = [part() for part in kinds]

    def restore() -> None:
        for part in parts:
            part()

    return restore


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """In here the global generators begin at a place that `seed` alone decides, and `os._exit` is an error.

    Behind it the process is as it was before.
    """
    restore = snapshot()
    try:
        with no_sudden_exit():
            seed_generators(seed)
            yield
    finally:
        restore()


@contextmanager
def told(seed: int) -> Iterator[None]:
    """`isolated`, and a plugin that ends the process is an error of the user, as one that raises is."""
    try:
        with isolated(seed):
            yield
    except SystemExit as error:
        raise UserError(blame(error)) from error


def in_turns(seed: int, begin: Callable[[], Generator[T, None, R]]) -> Generator[T, None, R]:
    """What `begin` generates, in a process that is its own in its turns and the caller's between them."""
    with told(seed):
        items = begin()
        own = snapshot()
    with closing(items):
        while True:
            with told(seed):
                own()
                try:
                    item = next(items)
                except StopIteration as end:
                    result: R = end.value
                    return result
                own = snapshot()
            yield item


def seed_generators(seed: int) -> None:
    """Let whoever draws from Python's, NumPy's or torch's global generator draw the same for the same seed.

    fedbench itself has streams of its own, see `fedbench.random`.
    """
    number = stream(seed, "global")
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)


def _generators() -> Restore:
    python, numpy, ours = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(ours)
        for number, state in enumerate(gpus):
            torch.cuda.set_rng_state(state, number)

    return restore


def _torch_settings() -> Restore:
    """What reaches the bits of a result, and what reaches its time."""
    return _all([*_modes(), *_kernels(), *_autocast()])


def _all(settings: Sequence[Setting]) -> Restore:
    """Only what is another one now is set: some cannot be set at all on some machines."""
    known = [(read(), read, write) for read, write in settings]

    def restore() -> None:
        for before, read, write in known:
            if read() != before:
                write(before)

    return restore


def _modes() -> list[Setting]:
    def set_anomaly(mode: tuple[bool, bool]) -> None:
        torch.autograd.set_detect_anomaly(*mode)

    return [
        (_default_device, torch.set_default_device),
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.is_grad_enabled, torch._C._set_grad_enabled),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        (lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()), set_anomaly),
        (_flushes_denormals, torch.set_flush_denormal),
    ]


def _default_device() -> torch.device | None:
    """None where nobody set one: that costs less than setting the CPU."""
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return None if context is None else context.device


def _flushes_denormals() -> bool:
    return bool(torch.tensor([1e-40], dtype=torch.float32, device="cpu").mul(1).eq(0))


def _kernels() -> list[Setting]:
    """Which ones are chosen, and how exactly they compute."""
    on_off: list[Setting] = [
        (torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled),
        (torch._C._get_cudnn_benchmark, torch._C._set_cudnn_benchmark),
        (torch._C._get_cudnn_deterministic, torch._C._set_cudnn_deterministic),
        (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
        (torch._C._get_nnpack_enabled, torch._C._set_nnpack_enabled),
        (backends.mha.get_fastpath_enabled, backends.mha.set_fastpath_enabled),
        (backends.cuda.flash_sdp_enabled, backends.cuda.enable_flash_sdp),
        (backends.cuda.mem_efficient_sdp_enabled, backends.cuda.enable_mem_efficient_sdp),
        (backends.cuda.math_sdp_enabled, backends.cuda.enable_math_sdp),
        (backends.cuda.cudnn_sdp_enabled, backends.cuda.enable_cudnn_sdp),
    ]
    coarse = (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)  # sets some of the others
    return [*on_off, coarse, *(_precision(of, operation) for of, operation in PRECISIONS)]


def _precision(of: str, operation: str) -> Setting:
    return (
        lambda: torch._C._get_fp32_precision_getter(of, operation),
        lambda value: torch._C._set_fp32_precision_setter(of, operation, value),
    )


def _autocast() -> list[Setting]:
    def enabled(device: str) -> Setting:
        return lambda: torch.is_autocast_enabled(device), lambda value: torch.set_autocast_enabled(device, value)

    def dtype(device: str) -> Setting:
        return lambda: torch.get_autocast_dtype(device), lambda value: torch.set_autocast_dtype(device, value)

    cache: Setting = (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled)
    return [cache, *map(enabled, DEVICES), *map(dtype, DEVICES)]


def _python() -> Restore:
    def set_path(value: list[str]) -> None:
        sys.path[:] = value

    return _all(
        [
            (sys.getrecursionlimit, sys.setrecursionlimit),
            (lambda: list(sys.path), set_path),
            (lambda: (sys.stdout, sys.stderr), _set_streams),
            (lambda: locale.setlocale(locale.LC_ALL), lambda value: locale.setlocale(locale.LC_ALL, value)),
            (np.geterr, lambda value: np.seterr(**value)),
        ]
    )


def _set_streams(streams: tuple[Any, Any]) -> None:
    sys.stdout, sys.stderr = streams


def _warnings() -> Restore:
    filters, show = list(warnings.filters), warnings.showwarning

    def restore() -> None:
        warnings.filters[:] = filters  # type: ignore[index]
        warnings._filters_mutated()  # type: ignore[attr-defined]
        warnings.showwarning = show

    return restore


def _signals() -> Restore:
    """Only the main thread may set handlers, and those that Python did not set cannot be put back."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    known = {number: signal.getsignal(number) for number in signal.valid_signals()}
    has_timer = signal.getitimer(signal.ITIMER_REAL)[0] > 0

    def restore() -> None:
        for number, handler in known.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        if not has_timer and not stopping.is_asked():  # then it is the grace that is left
            signal.setitimer(signal.ITIMER_REAL, 0)

    return restore


def _folder() -> Restore:
    mask = os.umask(0)
    os.umask(mask)
    before = None
    with suppress(OSError):  # it is gone
        before = Path.cwd()

    def restore() -> None:
        os.umask(mask)
        with suppress(OSError):
            os.chdir(before or ".")

    return restore


def _environment() -> Restore:
    before = dict(os.environ)

    def restore() -> None:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)

    return restore
