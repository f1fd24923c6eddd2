"""Ray, where it is asked for: the cluster that RAY_ADDRESS names, or one of this machine's own."""

import os
from types import ModuleType

from fedbench.errors import UserError


def import_ray() -> ModuleType:
    """The package, which only those need who leave one machine.

    UserError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it tells its makers of every cluster otherwise
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a warning less
    try:
        import ray
    except ImportError:
        raise UserError("engine=ray without Ray; allowed: after `pip install 'fedbench[ray]'`") from None
    return ray


def connect(num_cpus: int) -> bool:
    """Connect this process, unless it is; returns whether that started a Ray, which the caller is to shut down.

    One of this machine's own has `num_cpus` to give at least, listens on the loopback interface and shows no
    dashboard.
    """
    ray = import_ray()
    if ray.is_initialized():
        return False
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        cpus = max(num_cpus, len(os.sched_getaffinity(0)))
        # "local": without an address Ray would join whatever cluster was started on this machine last.
        ray.init("local", num_cpus=cpus, include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
    return True
