"""The conformance kit: a tiny run of a strategy, watched on its clients, and what must hold of it."""

from fedbench.conformance.checks import CHECKS, Finding, Trial

__all__ = ["CHECKS", "Finding", "Trial", "run_checks"]


def run_checks(trial: Trial) -> dict[str, Finding | None]:
    """Every check's finding, None where it holds."""
    return {name: check(trial) for name, check in CHECKS.items()}
