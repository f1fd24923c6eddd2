"""How a finished run was judged: by itself (summary.json), and afterwards by `evaluate` (evaluation-*.json)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedbench.protocols import PROTOCOLS
from fedbench.tracking.run_directory import RunDirectory, read_json


class ImpossibleError(ValueError):
    """A figure that no run can have."""


@dataclass(frozen=True)
class Evaluation:
    """One protocol's verdict on one run.

    Attributes:
        settings: of the protocol, by key.
        data: name of the data that judged, with `data_hash`.
        top1: of the trained encoder, a fraction; `untrained_top1`: of the same encoder untrained, the floor.
        personal_top1: where clients have models of their own, the mean over all of them; else None.
        own: whether the run made it itself; then its rounds may hold figures of it too.
    """

    protocol: str
    settings: Mapping[str, Any]
    data: str
    data_hash: str
    top1: float
    untrained_top1: float
    personal_top1: float | None
    own: bool


def read_evaluations(directory: RunDirectory) -> list[Evaluation]:
    """All of a finished run: those that were added by file name, then its own.

    Raises:
        KeyError, TypeError, ValueError: a file is not what fedbench writes; `ImpossibleError`: but for a value.
    """
    manifest, summary = directory.manifest(), directory.summary()
    files = [read_json(path) for path in directory.evaluations()]
    added = [_evaluation(content, content["figures"], own=False) for content in files]
    own = [_evaluation(facts, summary, own=True) for facts in summary.get("evaluations", [_former(manifest)])]
    return [*added, *own]


def _former(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Of runs from before there was more than one protocol."""
    config = manifest["config"]
    data = {"data": config["data"]["name"], "data_hash": manifest["data_hash"]}
    return {"protocol": "linear", "settings": config["probe"], **data}


def _evaluation(facts: Mapping[str, Any], figures: Mapping[str, Any], own: bool) -> Evaluation:
    protocol = facts["protocol"]
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}")
    personal = f"personal/{protocol}_top1"
    return Evaluation(
        protocol,
        dict(facts["settings"]),
        data=str(facts["data"]),
        data_hash=str(facts["data_hash"]),
        top1=_fraction(figures, f"probe/{protocol}_top1"),
        untrained_top1=_fraction(figures, f"untrained/{protocol}_top1"),
        personal_top1=_fraction(figures, personal) if personal in figures else None,
        own=own,
    )


def _fraction(figures: Mapping[str, Any], key: str) -> float:
    value = float(figures[key])
    if not 0 <= value <= 1:
        raise ImpossibleError(f"{key}={value}; allowed: a fraction, from 0 to 1")
    return value
