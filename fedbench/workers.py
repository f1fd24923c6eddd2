"""Where worker processes come from: forks of a server process that has imported fedbench once, for all of them."""

import multiprocessing
import os
import threading
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext


def worker_context() -> ForkServerContext:
    """The server is started with its first worker, unless it runs already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fedbench.worker_server"])
    return context


def start_importing() -> None:
    """Start the server now: called before this process imports torch, it takes no time of its own."""
    worker_context()
    forkserver.ensure_running()


def end_with_parent() -> None:
    """Let this worker die with the process that started it: what it was at is free for the next one."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
