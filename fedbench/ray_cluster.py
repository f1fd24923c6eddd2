"""A Ray to run on: this machine's own, or one that is there."""

import os
import secrets
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib.util import find_spec
from tempfile import mkdtemp
from typing import Any

from fedbench.errors import UserError
from fedbench.stopping import StoppedError

ANSWERS_S = 10.0  # that a machine has to answer
OWN = "local"  # the address that stands for a Ray of this machine's own
STORE_BYTES = 100_000_000  # for objects; the cells of this machine send next to none
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # tells its makers nothing
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # of cells that we ended
}
PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux too it means: listen on 127.0.0.1 alone
    "RAY_AUTH_MODE": "token",
}
TOKEN = "RAY_AUTH_TOKEN"


@cache
def private() -> dict[str, str]:
    """Environment of all Rays that this process starts, with a token of its own. Ray reads it when it is imported.

    UserError: it was imported without.
    """
    if "ray" in sys.modules and not PRIVATE.items() <= os.environ.items():
        raise UserError(
            "engine ray: Ray was imported before; allowed: to call ray.init() as well, or to import it later"
        )
    return {**PRIVATE, TOKEN: secrets.token_hex(32)}


def check_ray() -> None:
    """UserError: Ray is not installed."""
    if find_spec("ray") is None:
        raise UserError("engine ray: Ray is not installed; allowed: with pip install 'fedbench[ray]'")


@contextmanager
def connected(address: str, cpus: int) -> Iterator[Any]:
    """Ray, connected to a cluster; where `address` is `OWN`, to one that ends with the block.

    A process that is connected already stays as it is.

    Args:
        cpus: that the own one has, at the least.

    Raises:
        UserError: there is no Ray at `address`, or it does not let us in.
    """
    check_ray()
    before = dict(os.environ)
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield sys.modules["ray"]
        return
    own = private() if address == OWN else {}
    os.environ.update(QUIET | own)  # Ray reads them when it is imported
    try:
        import ray

        with _temporary() if own else _nothing() as options:
            try:
                _init(
                    ray,
                    address,
                    **options | ({"num_cpus": max(cpus, len(os.sched_getaffinity(0)))} if own else {}),
                )
                yield ray
            finally:
                ray.shutdown()
    finally:
        for name in (*QUIET, *own):
            os.environ.pop(name, None)
        os.environ.update(before)


@contextmanager
def _nothing() -> Iterator[dict[str, Any]]:
    yield {}


@contextmanager
def _temporary() -> Iterator[dict[str, Any]]:
    """Of an own Ray: a folder that goes with it. It is in /tmp, for the names of sockets must be short."""
    folder = mkdtemp(prefix="fedbench-ray-", dir="/tmp")
    try:
        yield {"_temp_dir": folder, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _init(ray: Any, address: str, **options: Any) -> None:
    _check_answers(address)
    with _same_sigterm(), _without_reports(ray) if address == OWN else nullcontext():
        try:
            ray.init(address, log_to_driver=False, logging_level="ERROR", **options)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"--address {address}: {first}") from error
        except SystemExit as error:  # so Ray answers SIGTERM
            raise StoppedError from error
    ray._private.worker._worker_logs_enabled = False  # pages about a dead node, into the output of the command


def _check_answers(address: str) -> None:
    """UserError: nobody listens there. Ray would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWERS_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"--address {address}: {error}; allowed: where `ray start --head` says that it runs"
        ) from error


@contextmanager
def _same_sigterm() -> Iterator[None]:
    """Ray sets a handler of its own: a process that is asked to end would not keep its round."""
    is_main = threading.current_thread() is threading.main_thread()  # others may not set any
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _without_reports(ray: Any) -> Iterator[None]:
    """Start no process for usage statistics, of which the one for the dashboard is left without a dashboard.

    It asks the metadata services of cloud providers which of them we are with, also where statistics are off.
    """
    services = ray._private.services
    before = services.start_api_server
    services.start_api_server = lambda *_, **__: (None, None)
    try:
        yield
    finally:
        services.start_api_server = before
