"""Who trains the clients of a round: this process, worker processes, or Ray's. The results have the same bits.

Every draw is keyed by seed, round and client, values come from payloads by version, and results are handed on in
the order of the visits: nothing depends on which process trained a client, or when.
"""

from pathlib import Path

from fedbench.federation.client import Worker
from fedbench.federation.engines.in_process import Engine, InProcess, build_worker
from fedbench.federation.engines.on_ray import OnRay
from fedbench.federation.engines.processes import Processes
from fedbench.federation.experiment import Experiment
from fedbench.federation.server import Server

__all__ = ["Engine", "build_engine", "build_worker"]


def build_engine(experiment: Experiment, worker: Worker, server: Server, folder: Path) -> Engine:
    """The engine that the configuration asks for."""
    if experiment.config.engine == "processes":
        return Processes(experiment, server, folder)
    if experiment.config.engine == "ray":
        return OnRay(experiment, server, folder)
    return InProcess(experiment, worker)
