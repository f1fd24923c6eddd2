"""Accuracy against each cost: who is on the Pareto front, and the picture of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from fedbench.tracking.ranking import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LOG_SPAN = 5  # a cost that spans more than this factor gets a logarithmic axis


@dataclass(frozen=True)
class Panel:
    """One cost axis: its label with the unit, and the cost in that unit."""

    label: str
    cost: Callable[[Row], float]


PANELS = (
    Panel("client compute (GFLOPs)", lambda row: row.flops / 10**9),
    Panel("client peak memory (MiB)", lambda row: row.peak_memory_bytes / 2**20),
    Panel("client download (MB)", lambda row: row.download_bytes / 10**6),
    Panel("client upload (MB)", lambda row: row.upload_bytes / 10**6),
)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each (cost, accuracy): is there no other point that is better in one and no worse in both?

    Equal points are both on the front or both off it.
    """
    front = [False] * len(points)
    best = -math.inf  # accuracy of all that costs less
    order = sorted(range(len(points)), key=lambda index: points[index][0])
    for _, same_cost in groupby(order, key=lambda index: points[index][0]):
        indices = list(same_cost)
        top = max(points[index][1] for index in indices)
        for index in indices:
            front[index] = points[index][1] == top > best
        best = max(best, top)
    return front


def plot(rows: Sequence[Row], path: Path) -> list[Path]:
    """One picture per table: `path`, then `path` with `-2`, `-3` before its suffix. Returns the files."""
    tables = [list(table) for _, table in groupby(rows, key=lambda row: row.table)]
    paths = [path.with_stem(path.stem + (f"-{n}" if n > 1 else "")) for n in range(1, len(tables) + 1)]
    for table, file in zip(tables, paths, strict=True):
        _figure(table).savefig(file, dpi=180)
    return paths


def _figure(rows: Sequence[Row]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.7), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for axis, panel in zip(axes, PANELS, strict=True):
        _draw(axis, panel, rows)
    axes[0].set_ylabel("linear probe top-1 (%)")
    handles, labels = axes[0].get_legend_handles_labels()
    columns = max(1, min(len(labels), 110 // (5 + max(map(len, labels)))))  # about 110 letters a line
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    figure.suptitle(f"{rows[0].title}, {_seeds(rows)}", fontsize=11)
    return figure


def _draw(axis: "Axes", panel: Panel, rows: Sequence[Row]) -> None:
    costs = [panel.cost(row) for row in rows]
    floor = 100 * sum(row.untrained_top1_mean for row in rows) / len(rows)
    axis.axhline(floor, color="0.45", linestyle="--", linewidth=1.2, label="untrained (floor)")
    _draw_front(axis, costs, rows)
    names = sorted(_name(row, rows) for row in rows)
    for row, cost in zip(rows, costs, strict=True):
        number = names.index(_name(row, rows))  # not by rank: the same colour in every picture
        error = None if row.linear_top1_std is None else 100 * row.linear_top1_std
        axis.errorbar(
            cost,
            100 * row.linear_top1_mean,
            yerr=error,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=8,
            linestyle="none",
            capsize=4,
            label=names[number],
        )
    _scale(axis, panel.label, costs)


def _draw_front(axis: "Axes", costs: Sequence[float], rows: Sequence[Row]) -> None:
    points = list(zip(costs, (100 * row.linear_top1_mean for row in rows), strict=True))
    front = sorted(point for point, kept in zip(points, pareto_front(points), strict=True) if kept)
    x, y = zip(*front, strict=True)
    axis.step(x, y, where="post", color="0.6", linewidth=1.2, zorder=1, label="Pareto front")


def _scale(axis: "Axes", label: str, costs: Sequence[float]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    if min(costs) > 0 and max(costs) / min(costs) > LOG_SPAN:
        axis.set_xscale("log")
        axis.margins(x=0.12)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(label.replace(")", ", log)"))
    else:
        axis.set_xlim(0, 1.12 * max(costs) or 1)
        axis.set_xlabel(label)
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _name(row: Row, rows: Sequence[Row]) -> str:
    """As much of a row's name as tells it from the other rows."""
    several = len({other.ssl for other in rows}) > 1
    return " ".join([row.strategy, *([row.ssl] if several else []), *([row.variant] if row.variant else [])])


def _seeds(rows: Sequence[Row]) -> str:
    counts = [len(row.seeds) for row in rows]
    least, most = min(counts), max(counts)
    return f"n = {least} seed{'s' * (most > 1)}" if least == most else f"n = {least} to {most} seeds"
