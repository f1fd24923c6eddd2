"""`numerics: portable`: the same bits on x86-64 processors of every kind, by kernels that all of them have.

Left alone, torch, oneDNN, MKL and the C library each choose kernels by the processor, and these round differently.
The portable ones are chosen by environment variables, which count only if they are there when the process starts;
so this module imports no torch.

What cannot be had that way: MKL's vector functions `sqrt`, `log2`, `log10`, `tan`, `asin`, `atan`, and `log` in
double precision, start from an approximation that processors make differently. Nothing here uses them where it
would reach a result; a plugin that does has bits that may differ between makers of processors.
"""

import os
import platform
import sys
from hashlib import sha256
from typing import TYPE_CHECKING, NoReturn

from fedbench.errors import UserError

if TYPE_CHECKING:
    from fedbench.config import Config

PORTABLE = {
    "ATEN_CPU_CAPABILITY": "default",  # torch's own kernels: SSE2
    "MKL_CBWR": "COMPATIBLE",  # MKL's: one path for processors of every maker
    # The C library's exp, sin and pow; the names with _Usable are those of glibc before 2.33.
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX2_Usable,-FMA_Usable",
}


class EnvironmentNeededError(UserError):
    """The process was not started with `PORTABLE` in its environment."""


def require(config: "Config") -> None:
    """Raise unless this process can compute with the `numerics` of the configuration.

    Raises:
        EnvironmentNeededError: starting it again with `environment()` would help.
        UserError: this machine cannot.
    """
    if config.numerics is None:
        return
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux":
        here = f"{platform.machine()} {sys.platform}"
        raise UserError(f"numerics=portable on {here}; allowed: on x86_64 linux, or without numerics")
    wrong = [name for name, value in PORTABLE.items() if os.environ.get(name) != value]
    if wrong:
        words = " ".join(f"{name}={PORTABLE[name]}" for name in wrong)
        raise EnvironmentNeededError(
            f"numerics=portable without {words}; allowed: with these set when Python is started"
        )


def environment() -> dict[str, str]:
    """This process's environment, with what portable kernels need."""
    return {**os.environ, **PORTABLE}


def restart() -> NoReturn:
    """Start this process again, as it was called, with portable kernels."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment())


def settle(config: "Config") -> None:
    """Let torch compute with the threads and `numerics` of the configuration from now on.

    Raises:
        UserError: portable kernels are asked for, and this build of torch, or this process, has not got them.
    """
    import torch

    torch.set_num_threads(config.threads)
    if config.numerics is None:
        return
    if not torch.backends.mkl.is_available():
        raise UserError("numerics=portable, but torch was built without MKL; allowed: a torch from PyPI")
    if torch.backends.cpu.get_cpu_capability() != "DEFAULT":
        raise UserError("numerics=portable, but torch has chosen its kernels; allowed: before torch is imported")
    # oneDNN and NNPACK have no such mode: torch's own kernels instead.
    torch.backends.mkldnn.set_flags(_enabled=False)
    torch.backends.nnpack.set_flags(_enabled=False)


def fingerprint() -> str:
    """Eight hexadecimal digits over what this process's CPU kernels make of fixed numbers.

    Two processes with different ones round differently. It is a sample: equal ones have agreed on these operators.
    """
    import torch
    from torch.nn import functional as F

    x = torch.arange(6144).remainder(97).div(97).view(64, 96)
    image, tokens = x.view(4, 6, 16, 16), x.view(2, 2, 16, 96)
    results = [
        x @ x.T,
        (x.bfloat16() @ x.T.bfloat16()).float(),
        F.conv2d(image, image[:, :, :3, :3], padding=1),
        F.scaled_dot_product_attention(tokens, tokens, tokens),
        F.layer_norm(x, (96,)),
        F.gelu(x),
        F.log_softmax(x, dim=1),
        x.exp(),
    ]
    return sha256(b"".join(result.numpy().tobytes() for result in results)).hexdigest()[:8]
