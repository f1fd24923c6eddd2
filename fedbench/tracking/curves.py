"""What happened round by round, read from the rounds.jsonl of finished runs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from fedbench.tables import MB
from fedbench.tracking.run_directory import RunDirectory
from fedbench.tracking.runs import Run


@dataclass(frozen=True)
class Curve:
    """One run, a value for each round; NaN where a value was not measured or not finite.

    Attributes:
        rounds: 0-based.
        stages: 1-based.
        loss: of the clients' training, their mean weighted by samples.
        megabytes: download and upload so far, total of all clients / registered clients, in MB (10^6 bytes).
        accuracy: top-1 in percent under the protocol of the run, if it was the run that measured it.
    """

    rounds: tuple[int, ...]
    stages: tuple[int, ...]
    loss: tuple[float, ...]
    megabytes: tuple[float, ...]
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
    return Curve(
        rounds=tuple(int(record["round"]) for record in records),
        stages=tuple(int(record["stage"]) for record in records),
        loss=tuple(_number(record, "train/loss") for record in records),
        megabytes=tuple(total / num_clients / MB for total in accumulate(traffic)),
        accuracy=tuple(100 * _number(record, key) for record in records),
    )


def _number(record: Mapping[str, Any], key: str) -> float:
    value = record.get(key)
    return math.nan if value is None else float(value)
