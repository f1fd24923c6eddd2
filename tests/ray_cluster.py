"""A Ray of several machines that are all this one: raylets on the loopback, as many as a test adds."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import mkdtemp
from typing import Any

import pytest

from fedbench.ray_cluster import QUIET, private

STORE = {"object_store_memory": 80_000_000}
SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 2}


@contextmanager
def ray_cluster(num_cpus: int) -> Iterator[Any]:
    """Connected to a head with that many; gone with the block. More machines: `add_node(num_cpus=2, **STORE)`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**QUIET, **private()}.items():
            patch.setenv(name, value)
        import ray
        from ray.cluster_utils import Cluster

        folder = mkdtemp(prefix="rays-", dir="/tmp")  # names of sockets must be short
        head = {"num_cpus": num_cpus, "temp_dir": folder, "include_dashboard": False, "_system_config": SOON}
        cluster = Cluster(initialize_head=True, connect=True, head_node_args={**head, **STORE})
        try:
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
