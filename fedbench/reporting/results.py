"""`benchmarks/results/NAME.json`: the rows of a report with all that it takes to run them again.

{"rows": [{"name", "table", "protocol", "config", "runs": [{"seed", "commit", "kernels", "torch", "device",
"accelerator", "data_hash", "memory_source", "encoder_sha256", "figures": {...}}]}]}

`config` is whole but for what differs between its runs (the seed) and what no result depends on. Figures are in
base units: top-1 as a fraction, FLOPs with 1 multiply-add = 2, bytes; `encoder_sha256` is of the trained weights.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedbench.errors import UserError
from fedbench.reporting.comparison import Cell
from fedbench.reporting.ranking import Row, row_name
from fedbench.tracking.run_directory import RunDirectory
from fedbench.tracking.runs import Run

Tree = dict[str, Any]
COSTS = (
    "client/local_steps",
    "client/flops",
    "server/flops",
    "total/flops",
    "client/download_bytes",
    "client/upload_bytes",
    "client/peak_memory_bytes",
    "server/peak_memory_bytes",
)
NOT_THE_CELLS = ("seed", "accelerator", "engine", "workers", "tracking")  # of a configuration, for `config`


def results(tables: Sequence[Sequence[tuple[Row, Cell]]]) -> Tree:
    """Content of the file. Rows by protocols that were added to a finished run are left out: no run gives them."""
    rows = [
        {
            "name": row_name(row, [other for other, _ in table]),
            "table": row.title,
            "protocol": row.protocol,
            "config": {k: v for k, v in cell.runs[0].manifest["config"].items() if k not in NOT_THE_CELLS},
            "runs": [entry(run) for run in cell.runs],
        }
        for table in tables
        for row, cell in table
        if cell.runs[0].evaluation.own
    ]
    return {"rows": rows}


def entry(run: Run) -> Tree:
    """What is noted of one run: who computed it, on what, and its figures."""
    assert run.path is not None
    manifest, judged = run.manifest, run.evaluation
    return {
        "seed": run.seed,
        "commit": run.code,
        "kernels": run.numerics,
        "torch": manifest.get("libraries", {}).get("torch"),
        "device": manifest["device"],
        "accelerator": manifest.get("accelerator"),
        "data_hash": manifest["data_hash"],
        "memory_source": run.summary["memory_source"],
        "encoder_sha256": RunDirectory(run.path).encoder_digest(),
        "figures": {
            "top1": judged.top1,
            "untrained_top1": judged.untrained_top1,
            **{cost: run.summary[cost] for cost in COSTS},
        },
    }


def read_results(file: Path) -> list[Tree]:
    """The rows of a file that `report --results` wrote.

    Raises:
        UserError: it is no such file, or has no row.
    """
    try:
        rows: list[Tree] = json.loads(file.read_text(encoding="utf-8"))["rows"]
        whole = [row["name"] and row["config"] and row["protocol"] and row["runs"][0]["figures"] for row in rows]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{file} holds no results ({error}); allowed: what `report RUNS --results FILE` wrote"
        ) from None
    if not whole:
        raise UserError(f"{file} has no row; allowed: one or more")
    return rows
