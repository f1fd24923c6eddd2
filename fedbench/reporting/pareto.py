"""Accuracy against each cost: who is on the Pareto front, and the picture of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedbench.files import write_atomically
from fedbench.reporting.ranking import Row, by_table, drawn, row_name
from fedbench.tables import GFLOPS, MB, MIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, with grey in place of black, which a dark page would hide.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LOG_SPAN = 5  # a cost that spans more than this factor gets a logarithmic axis
HEIGHT, PANELS_HEIGHT, LINE_HEIGHT = (
    3.7,
    3.2,
    0.2,
)  # inches: of a picture at least; what its legend comes on top of
CROWDED_SPAN = 20  # and above this one fewer ticks, which would run into each other

FRONT_NOTE = (
    "Pareto front: the costs for which no other row is cheaper and as accurate, or as cheap and more accurate, by "
    "the means. A run that diverged or is not above the untrained floor is on none, nor is a point of reference."
)


@dataclass(frozen=True)
class Panel:
    """One cost axis: the field of a row that holds the cost, its name in words, and the unit it is shown in."""

    field: str
    name: str
    unit: str
    base_units: int  # in one of the shown unit

    @property
    def label(self) -> str:
        """For an axis: whose cost, and in which unit."""
        whose = "" if self.field.startswith("total_") else "client "
        return f"{whose}{self.name} ({self.unit})"

    def cost(self, row: Row) -> float:
        """In the shown unit."""
        return float(getattr(row, self.field) or 0) / self.base_units

    def span(self, rows: Sequence[Row]) -> float:
        """Factor between the largest and the smallest cost; 0 where there is none."""
        costs = [self.cost(row) for row in rows]
        return max(costs) / min(costs) if min(costs) > 0 else 0.0

    def is_log(self, rows: Sequence[Row]) -> bool:
        """Whether the axis is logarithmic: only for costs that span a large factor."""
        return self.span(rows) > LOG_SPAN


PANELS = (
    Panel("flops", "compute", "GFLOPs", GFLOPS),
    Panel("total_flops", "compute of everybody", "GFLOPs", GFLOPS),
    Panel("peak_memory_bytes", "peak memory", "MiB", MIB),
    Panel("download_bytes", "download", "MB", MB),
    Panel("upload_bytes", "upload", "MB", MB),
)


def front(rows: Sequence[Row], panel: Panel) -> list[Row]:
    """Rows of one table on the Pareto front of accuracy and a cost, cheapest first.

    A run that diverged is on none. Memories of different meters are not compared: each meter has its front.
    """
    kept = []
    for group in like_measured(rows, panel):
        sound = [row for row in group if competes(row)]
        marks = pareto_front([(panel.cost(row), row.top1_mean) for row in sound])
        kept += [row for row, mark in zip(sound, marks, strict=True) if mark]
    return sorted(kept, key=panel.cost)


def front_names(row: Row, rows: Sequence[Row]) -> str:
    """The costs for which a row is on the front."""
    kept = [panel.name for panel in PANELS if row in front(rows, panel)]
    return "all" if len(kept) == len(PANELS) else ", ".join(kept)


def competes(row: Row) -> bool:
    """Whether a row can be on a front or best: it did not diverge, and to do nothing, which is free, is worse."""
    return not row.diverged and row.gain > 0


def like_measured(rows: Sequence[Row], panel: Panel) -> list[list[Row]]:
    """Rows whose costs may be compared: all that compete in a table, but memory meter by meter.

    A run in which no client trained was measured by no meter; it needed no memory by any.
    """
    rows = [row for row in rows if not row.reference and getattr(row, panel.field) is not None]
    if panel.field != "peak_memory_bytes":
        return [rows]
    sources = sorted({row.memory_source for row in rows} - {""}) or [""]
    return [[row for row in rows if row.memory_source in ("", source)] for source in sources]


def accuracy_label(rows: Sequence[Row]) -> str:
    """For an axis: of which protocol."""
    return f"{rows[0].protocol} top-1 (%)"


def style(number: int) -> tuple[int, int]:
    """Which colour and which marker: no two alike among the first 49."""
    return number % len(COLOURS), (number + number // len(COLOURS)) % len(MARKERS)


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
    tables = by_table(rows)
    paths = [path.with_stem(path.stem + (f"-{n}" if n > 1 else "")) for n in range(1, len(tables) + 1)]
    for table, file in zip(tables, paths, strict=True):
        picture = BytesIO()
        _figure(table).savefig(picture, dpi=180)
        write_atomically(file, picture.getvalue())
    return paths


def _figure(rows: Sequence[Row]) -> "Figure":
    from matplotlib.figure import Figure

    rows = drawn(rows)
    figure = Figure(figsize=(13, HEIGHT), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for axis, panel in zip(axes, PANELS, strict=True):
        _draw(axis, panel, rows)
    axes[0].set_ylabel(accuracy_label(rows))
    handles, labels = axes[0].get_legend_handles_labels()
    columns = _columns(labels)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    figure.set_figheight(max(HEIGHT, PANELS_HEIGHT + LINE_HEIGHT * math.ceil(len(labels) / columns)))
    figure.suptitle(_literal(f"{rows[0].title}, {_seeds(rows)}"), fontsize=11)
    return figure


def _columns(labels: Sequence[str]) -> int:
    """Of a legend: as many as fit on a line of about 110 letters."""
    widths = {
        n: sum(5 + max(map(len, column)) for column in np.array_split(labels, n))
        for n in range(1, len(labels) + 1)
    }
    return max((n for n, width in widths.items() if width <= 110), default=1)


def _draw(axis: "Axes", panel: Panel, rows: Sequence[Row]) -> None:
    costs = [panel.cost(row) for row in rows]
    floor = 100 * sum(row.untrained_top1_mean for row in rows) / len(rows)
    axis.axhline(floor, color="0.45", linestyle="--", linewidth=1.2, label="untrained (floor)")
    _draw_front(axis, panel, rows)
    names = sorted(row_name(row, rows) for row in rows)
    for row, cost in zip(rows, costs, strict=True):
        number = names.index(row_name(row, rows))  # not by rank: the same colour in every picture
        colour, marker = style(number)
        error = None if row.top1_std is None else 100 * row.top1_std
        axis.errorbar(
            cost,
            100 * row.top1_mean,
            yerr=error,
            color=COLOURS[colour],
            marker=MARKERS[marker],
            markersize=8,
            linestyle="none",
            capsize=4,
            label=_literal(names[number]),
        )
    _scale(axis, panel, rows)


def _draw_front(axis: "Axes", panel: Panel, rows: Sequence[Row]) -> None:
    label = "Pareto front"
    for group in like_measured(rows, panel):
        kept = front(group, panel)
        x, y = [panel.cost(row) for row in kept], [100 * row.top1_mean for row in kept]
        axis.step(x, y, where="post", color="0.6", linewidth=1.2, zorder=1, label=label)
        label = "_"  # once in the legend


def _scale(axis: "Axes", panel: Panel, rows: Sequence[Row]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    if panel.is_log(rows):
        axis.set_xscale("log")
        axis.margins(x=0.12)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if panel.span(rows) < CROWDED_SPAN else (1, 3)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(panel.label.replace(")", ", log)"))
    else:
        axis.set_xlim(0, 1.12 * max(map(panel.cost, rows)) or 1)
        axis.set_xlabel(panel.label)
    axis.margins(y=0.1)  # whole markers
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _literal(text: str) -> str:
    """So that matplotlib reads no mathematics in it, nor a label to hide."""
    return ("\u200b" * text.startswith("_")) + text.replace("$", r"\$")


def _seeds(rows: Sequence[Row]) -> str:
    counts = [len(row.seeds) for row in rows]
    least, most = min(counts), max(counts)
    return f"n = {least} seed{'s' * (most > 1)}" if least == most else f"n = {least} to {most} seeds"
