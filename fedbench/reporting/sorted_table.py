"""The page's table to sort: what each cell shows, what it is sorted by, and which end of a column is the best."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from fedbench.reporting.leaderboard import MODEL, PERSONAL, difference, known, percent, personal, place, privacy
from fedbench.reporting.pareto import front_names
from fedbench.reporting.ranking import Row
from fedbench.tables import GFLOPS, MB, MIB, number

PRIVACY = "epsilon (delta)"
Best = Literal["ascending", "descending"]


@dataclass(frozen=True)
class Column:
    """Of the table: its head, its text, the figure (or word) it is sorted by, and which order has the best first.

    A row whose `order` is None stands last in either order.
    """

    title: str
    shown: Callable[[Row], str]
    order: Callable[[Row], float | str | None]
    best: Best = "ascending"
    is_figure: bool = True


def words(title: str, text: Callable[[Row], str]) -> Column:
    """A column of words, sorted as such."""
    return Column(title, text, text, is_figure=False)


def cost(title: str, field: str, unit: int, ratio: str = "") -> Column:
    """A column of a cost in a unit of so many base units, with its ratio to the reference."""

    def shown(row: Row) -> str:
        return known(getattr(row, field), unit, getattr(row, ratio) if ratio else None)

    return Column(title, shown, lambda row: getattr(row, field))


ACCURACY = (
    Column("#", lambda row: place(row), lambda row: row.rank),
    Column("top-1 %", lambda row: percent(row.top1_mean, row.top1_std), lambda row: row.top1_mean, "descending"),
    Column(PERSONAL, lambda row: personal(row), lambda row: row.personal_top1_mean, "descending"),
    Column("gain", lambda row: f"{100 * row.gain:+.1f}", lambda row: row.gain, "descending"),
    words("ssl", lambda row: row.ssl),
    words("variant", lambda row: row.variant),
    Column("seeds", lambda row: _seeds(row), lambda row: len(row.seeds), "descending"),
    Column(
        "floor %", lambda row: percent(row.untrained_top1_mean), lambda row: row.untrained_top1_mean, "descending"
    ),
    Column("minus fedssl [95 %]", lambda row: difference(row), lambda row: row.difference, "descending"),
    words("tuned", lambda row: row.tuned),
)
COSTS = (
    cost("client GFLOPs", "flops", GFLOPS, "flops_ratio"),
    cost("server GFLOPs", "server_flops", GFLOPS),
    cost("all GFLOPs", "total_flops", GFLOPS, "total_flops_ratio"),
    cost("memory MiB", "peak_memory_bytes", MIB, "peak_memory_ratio"),
    cost("down MB", "download_bytes", MB, "download_ratio"),
    cost("up MB", "upload_bytes", MB, "upload_ratio"),
    Column(PRIVACY, lambda row: privacy(row), lambda row: row.epsilon),
    cost(MODEL, "secure_aggregation_bytes", MB),
    cost("steps", "local_steps", 1),
    Column("wall s", lambda row: number(row.seconds), lambda row: row.seconds),
)
STRATEGY = words("strategy", lambda row: row.strategy)


def grid(rows: Sequence[Row]) -> dict[str, Any]:
    """For the template: `columns`, and `rows` with a cell for each of them and links to their runs."""
    front = words("on the Pareto front of", lambda row: front_names(row, rows))
    columns = [
        column
        for column in (STRATEGY, *ACCURACY, *COSTS, front)
        if column.title not in ("variant", "tuned", PERSONAL, PRIVACY, MODEL)
        or any(column.shown(row) not in ("", "-") for row in rows)
    ]
    lines = [
        {"cells": [{"shown": one.shown(row), "order": one.order(row)} for one in columns], "runs": links(row)}
        for row in rows
    ]
    return {"columns": columns, "rows": lines}


def links(row: Row) -> list[dict[str, str]]:
    """A run directory and a W&B run for each seed: addresses, or "" for what has none, and its name."""
    return [
        {
            "seed": str(seed),
            "folder": f"{quote(folder)}/",  # a relative address, whatever the folder is called
            "name": folder,
            "wandb": name,
            "address": name if name.startswith(("https://", "http://")) else "",
        }
        for seed, folder, name in zip(row.seeds, row.runs, row.wandb, strict=True)
    ]


def _seeds(row: Row) -> str:
    return f"{len(row.seeds)}" + (f" (lacks {len(row.missing_seeds)})" if row.missing_seeds else "")
