"""What happened round by round, read from the rounds.jsonl of finished runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from statistics import fmean
from typing import Any

from fedbench.tables import GFLOPS, MB
from fedbench.tracking.run_directory import RunDirectory
from fedbench.tracking.runs import Run

SO_FAR = ("megabytes", "gflops")  # of one client


@dataclass(frozen=True)
class Curve:
    """One run, a value for each round; NaN where a value was not measured or not finite.

    Attributes:
        rounds: 0-based.
        stages: 1-based.
        loss: of the clients' training, their mean weighted by samples.
        megabytes: download and upload so far, total of all clients / registered clients, in MB (10^6 bytes).
        gflops: of the clients' training so far, total of all clients / registered clients.
        accuracy: top-1 in percent under the protocol of the run, if it was the run that measured it.
    """

    rounds: tuple[int, ...]
    stages: tuple[int, ...]
    loss: tuple[float, ...]
    megabytes: tuple[float, ...]
    gflops: tuple[float, ...]
    accuracy: tuple[float, ...]

    @property
    def has_accuracy(self) -> bool:
        """Whether it was measured in any round."""
        return not all(map(math.isnan, self.accuracy))


def read_curve(run: Run) -> Curve | None:
    """The curve of a run; None where its rounds.jsonl is missing, empty or not readable."""
    if run.path is None:
        return None
    try:
        records = RunDirectory(run.path).rounds()
        return _curve(run, records) if records else None
    except (OSError, KeyError, TypeError, ValueError):
        return None


def _curve(run: Run, records: list[dict[str, Any]]) -> Curve:
    num_clients = run.manifest["config"]["federation"]["num_clients"]
    key = f"probe/{run.evaluation.protocol}_top1" if run.evaluation.own else ""
    traffic = [record["all_clients/download_bytes"] + record["all_clients/upload_bytes"] for record in records]
    flops = [record["all_clients/flops"] for record in records]
    return Curve(
        rounds=tuple(int(record["round"]) for record in records),
        stages=tuple(int(record["stage"]) for record in records),
        loss=tuple(_number(record, "train/loss") for record in records),
        megabytes=tuple(total / num_clients / MB for total in accumulate(traffic)),
        gflops=tuple(total / num_clients / GFLOPS for total in accumulate(flops)),
        accuracy=tuple(100 * _number(record, key) for record in records),
    )


def over_seeds(curves: Sequence[Curve], figure: str) -> dict[str, list[float]]:
    """Means of the curves of one row, for the rounds in which each of them has the figure.

    Args:
        figure: `loss` or `accuracy`.

    Returns: `rounds`, `stages`, `megabytes`, `gflops` and the figure, and its `low`est and `high`est; all finite.
    """
    measured = [_measured(curve, figure) for curve in curves]
    shared = sorted(set.intersection(*map(set, measured)))
    points = [[_point(curve, at[number]) for curve, at in zip(curves, measured, strict=True)] for number in shared]
    means = {key: [fmean(point[key] for point in seeds) for seeds in points] for key in SO_FAR}
    values = [[point[figure] for point in seeds] for seeds in points]
    return {
        **means,
        "rounds": list(shared),
        "stages": [seeds[0]["stages"] for seeds in points],
        figure: list(map(fmean, values)),
        "low": list(map(min, values)),
        "high": list(map(max, values)),
    }


def _measured(curve: Curve, figure: str) -> dict[int, int]:
    """Round -> its place in the curve, where the figure is finite."""
    values = getattr(curve, figure)
    return {number: at for at, number in enumerate(curve.rounds) if math.isfinite(values[at])}


def _point(curve: Curve, at: int) -> dict[str, float]:
    return {field.name: getattr(curve, field.name)[at] for field in fields(curve)}


def _number(record: Mapping[str, Any], key: str) -> float:
    value = record.get(key)
    return math.nan if value is None else float(value)
