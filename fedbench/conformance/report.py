"""`python -m fedbench check`: the kit's findings as a table, on a run of seconds on digits."""

from collections.abc import Mapping
from typing import Any

from fedbench.config import load_config
from fedbench.conformance.checks import CHECKS, Finding, Trial
from fedbench.errors import UserError
from fedbench.plugins import place_of

TINY: dict[str, Any] = {
    "ssl": {"hidden_dim": 16, "output_dim": 8},
    "encoder": {"name": "vit", "image_size": 8, "patch_size": 4, "width": 16, "depth": 3, "heads": 2},
    "data": {"name": "digits", "num_train": 60},
    "optimizer": {"base_lr": 1.0e-1, "batch_size": 8},
    "accelerator": "cpu",
    "threads": 1,
}
SITUATIONS: dict[str, dict[str, Any]] = {
    "all clients": {"num_clients": 3},
    "one client": {"num_clients": 1},
    "some lost, one late": {
        "num_clients": 4,
        "dropout_before": 0.2,
        "dropout_after": 0.3,
        "late_clients": 1,
        "late_round": 3,
    },
}


def check_strategy(strategy: str | Mapping[str, Any]) -> list[tuple[str, str, Finding | None]]:
    """(situation, check, finding or None) for every situation and check, on the quick ViT.

    Raises:
        UserError: the strategy cannot even be started.
    """
    return [
        (situation, name, finding)
        for situation, federation in SITUATIONS.items()
        for name, finding in _findings(strategy, federation)
    ]


def _findings(
    strategy: str | Mapping[str, Any], federation: Mapping[str, Any]
) -> list[tuple[str, Finding | None]]:
    config = load_config(
        TINY, {"strategy": strategy, "federation": {**federation, "rounds": 6, "local_epochs": 1}}
    )
    try:
        trial = Trial(config)
    except UserError:
        raise
    except Exception as error:
        crash = Finding("a run to the end", f"{type(error).__name__}: {error}", place_of(error))
        return [("runs to the end", crash)]
    return [("runs to the end", None), *((name, check(trial)) for name, check in CHECKS.items())]


def render(rows: list[tuple[str, str, Finding | None]]) -> str:
    """One line per check; under a failed one what was expected, what was seen, where to look."""
    width = max(len(name) for _, name, _ in rows)
    lines, before = [], ""
    for situation, name, finding in rows:
        if situation != before:
            lines.append(f"\n{situation}")
            before = situation
        lines.append(f"  {name:<{width}}  {'ok' if finding is None else 'FAILED'}")
        if finding is not None:
            lines += [f"    expected: {finding.expected}", f"    seen:     {finding.seen}"]
            lines.append(f"    where:    {finding.where}")
    failed = sum(finding is not None for _, _, finding in rows)
    return "\n".join([*lines, "", f"{len(rows)} checks, {failed} failed"])
