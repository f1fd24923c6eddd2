"""Where worker processes come from: forks of a server process that has imported fedbench once, for all of them."""

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext


def worker_context() -> ForkServerContext:
    """The server is started with its first worker, unless it runs already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fedbench.running.cells"])  # imports whatever a worker needs
    return context


def start_importing() -> None:
    """Start the server now: called before this process imports torch, it takes no time of its own."""
    worker_context()
    forkserver.ensure_running()
