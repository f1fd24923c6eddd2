"""Whether a node of a cluster has the code that we do."""

import platform
from collections.abc import Mapping

import fedbench
from fedbench.remembered import code_digest
from fedbench.tracking.manifest import library_versions


def installed() -> dict[str, str | None]:
    """What two machines must have alike to compute the same bits, as far as it is installed."""
    return {
        "fedbench": f"{fedbench.__version__} ({code_digest()[:8]})",
        "python": platform.python_version(),
        **library_versions(),
    }


def differences(there: Mapping[str, str | None], here: Mapping[str, str | None]) -> str:
    """What is installed otherwise there, in words; "" if nothing is."""
    names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    return ", ".join(f"{name} {there.get(name)} there and {here.get(name)} here" for name in names)
