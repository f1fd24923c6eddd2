"""The interactive parts of the page: the sortable table, accuracy against a cost, and curves over the rounds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bokeh.models import ColumnDataSource, DataRange1d, HoverTool, NumeralTickFormatter, Range1d
from bokeh.models.annotations import Span
from bokeh.models.ranges import Range
from bokeh.models.renderers import DataRenderer
from bokeh.models.widgets.tables import DataTable, HTMLTemplateFormatter, TableColumn
from bokeh.plotting import figure

from fedbench.tables import GFLOPS, MB, MIB, number, with_ratio
from fedbench.tracking.curves import Curve
from fedbench.tracking.leaderboard import difference, known, percent, place
from fedbench.tracking.pareto import COLOURS, Panel, accuracy_label, front, front_names, like_measured, style
from fedbench.tracking.ranking import Row, drawn, row_name

GLYPHS = ("●", "■", "▲", "◆", "▼", "✚", "✖")  # as MARKERS of pareto.py
SHAPES = ("circle", "square", "triangle", "diamond", "inverted_triangle", "cross", "x")
DASHES = ("solid", "dashed", "dotted", "dotdash")
CELL = '<span title="<%- shown %>"><%- shown %></span>'  # <%- escapes; the title is for what is cut off
ROW_HEIGHT, MAX_TABLE_HEIGHT = 28, 560  # px


@dataclass(frozen=True)
class GridColumn:
    """A column of the sortable table: what it shows, what it sorts by, and its width in px."""

    title: str
    width: int
    shown: Sequence[str]
    order: Sequence[float | str]


def names(rows: Sequence[Row]) -> list[str]:
    """The rows' names in the order that gives them colours: not by rank, so that a colour stays with its name."""
    return sorted(row_name(row, rows) for row in drawn(rows))


def look(row: Row, rows: Sequence[Row]) -> tuple[str, int]:
    """Colour, and number of the marker."""
    colour, marker = style(names(rows).index(row_name(row, rows)))
    return COLOURS[colour], marker


def grid(rows: Sequence[Row], name: str) -> DataTable:
    """The sortable table. It shows text and sorts by the figure behind it."""
    columns = _columns(rows)
    source = ColumnDataSource(
        {f"shown{index}": list(column.shown) for index, column in enumerate(columns)}
        | {f"order{index}": list(column.order) for index, column in enumerate(columns)}
    )
    return DataTable(
        name=name,
        source=source,
        columns=[
            TableColumn(
                field=f"order{index}",
                title=column.title,
                width=column.width,
                formatter=HTMLTemplateFormatter(template=CELL.replace("shown", f"shown{index}")),
            )
            for index, column in enumerate(columns)
        ],
        autosize_mode="none",
        index_position=None,
        frozen_columns=1,
        reorderable=False,
        row_height=ROW_HEIGHT,
        height=min(MAX_TABLE_HEIGHT, ROW_HEIGHT * (len(rows) + 1) + 24),
        sizing_mode="stretch_width",
    )


def _columns(rows: Sequence[Row]) -> list[GridColumn]:
    columns = [
        _words(
            "strategy", min(160, 40 + 7 * max(len(row.strategy) for row in rows)), [row.strategy for row in rows]
        ),
        _figures("#", 36, [row.rank or math.inf for row in rows], [place(row) for row in rows]),
        _words("ssl", 80, [row.ssl for row in rows]),
        _words("variant", 190, [row.variant for row in rows]),
        _figures(
            "seeds",
            90 if any(row.missing_seeds for row in rows) else 54,
            [len(row.seeds) for row in rows],
            [_seeds(row) for row in rows],
        ),
        _figures("top-1 %", 92, [row.top1_mean for row in rows], [_top1(row) for row in rows]),
        _figures("floor %", 62, [row.untrained_top1_mean for row in rows], [_floor(row) for row in rows]),
        _figures("gain", 56, [row.gain for row in rows], [f"{100 * row.gain:+.1f}" for row in rows]),
        _figures("minus fedssl", 120, [row.difference or 0 for row in rows], [difference(row) for row in rows]),
        _words("tuned", 62, [row.tuned for row in rows]),
        _figures("steps", 56, [row.local_steps or 0 for row in rows], [known(row.local_steps, 1) for row in rows]),
        _cost("client GFLOPs", [(row.flops / GFLOPS, row.flops_ratio) for row in rows]),
        _figures(
            "server GFLOPs",
            90,
            [row.server_flops or 0 for row in rows],
            [known(row.server_flops, GFLOPS) for row in rows],
        ),
        _figures(
            "all GFLOPs",
            112,
            [row.total_flops or 0 for row in rows],
            [known(row.total_flops, GFLOPS, row.total_flops_ratio) for row in rows],
        ),
        _cost("memory MiB", [(row.peak_memory_bytes / MIB, row.peak_memory_ratio) for row in rows]),
        _cost("down MB", [(row.download_bytes / MB, row.download_ratio) for row in rows]),
        _cost("up MB", [(row.upload_bytes / MB, row.upload_ratio) for row in rows]),
        _figures("wall s", 62, [row.seconds for row in rows], [number(row.seconds) for row in rows]),
        _words("on the Pareto front of", 200, [front_names(row, rows) for row in rows]),
    ]
    return [column for column in columns if column.title not in ("variant", "tuned") or any(column.shown)]


def _words(title: str, width: int, words: Sequence[str]) -> GridColumn:
    return GridColumn(title, width, words, words)


def _figures(title: str, width: int, figures: Sequence[float], shown: Sequence[str]) -> GridColumn:
    return GridColumn(title, width, shown, figures)


def _cost(title: str, costs: Sequence[tuple[float, float | None]]) -> GridColumn:
    return GridColumn(title, 112, [with_ratio(*cost) for cost in costs], [cost for cost, _ in costs])


def _seeds(row: Row) -> str:
    return f"{len(row.seeds)}" + (f" (lacks {len(row.missing_seeds)})" if row.missing_seeds else "")


def _top1(row: Row) -> str:
    return percent(row.top1_mean, row.top1_std)


def _floor(row: Row) -> str:
    return percent(row.untrained_top1_mean)


def cost_chart(rows: Sequence[Row], panel: Panel, name: str) -> figure:
    """Accuracy against one cost, with the front and the floor."""
    rows = drawn(rows)
    log = panel.is_log(rows)
    span = DataRange1d(range_padding=0.12) if log else Range1d(start=0, end=1.12 * max(map(panel.cost, rows)) or 1)
    chart = _figure(name, panel.label.replace(")", ", log)") if log else panel.label, span, log=log)
    chart.yaxis.axis_label = accuracy_label(rows)
    floor = 100 * sum(row.untrained_top1_mean for row in rows) / len(rows)
    points = _points(rows, panel)
    low, high = min(floor, *points["low"]), max(floor, *points["high"])
    chart.y_range = Range1d(start=low - 0.06 * (high - low) - 0.1, end=high + 0.08 * (high - low) + 0.1)
    chart.add_layout(Span(location=floor, dimension="width", line_color="#777", line_dash="dashed"))
    for group in like_measured(rows, panel):
        kept = front(group, panel)
        if kept:
            y = [100 * row.top1_mean for row in kept]
            chart.step([panel.cost(row) for row in kept], y, mode="after", line_color="#999")
    source = ColumnDataSource(points)
    chart.segment("cost", "low", "cost", "high", source=source, line_color="colour", line_width=2)
    dots = chart.scatter("cost", "top1", source=source, color="colour", marker="marker", size=12)
    tooltips = [(word, f"@{word}") for word in ("row", "accuracy", "seeds", "price", "measured", "front")]
    chart.add_tools(HoverTool(renderers=[dots], tooltips=tooltips))
    return chart


def _points(rows: Sequence[Row], panel: Panel) -> dict[str, list[Any]]:
    """Columns for the dots, and the words for hovering over them."""
    top1 = [100 * row.top1_mean for row in rows]
    spread = [100 * (row.top1_std or 0) for row in rows]
    looks = [look(row, rows) for row in rows]
    kept = front(rows, panel)
    return {
        "cost": [panel.cost(row) for row in rows],
        "top1": top1,
        "low": [mean - std for mean, std in zip(top1, spread, strict=True)],
        "high": [mean + std for mean, std in zip(top1, spread, strict=True)],
        "colour": [colour for colour, _ in looks],
        "marker": [SHAPES[marker] for _, marker in looks],
        "row": [row_name(row, rows) for row in rows],
        "accuracy": [f"{_top1(row)} %, {100 * row.gain:+.1f} over the floor of {_floor(row)} %" for row in rows],
        "seeds": [", ".join(map(str, row.seeds)) for row in rows],
        "price": [f"{number(panel.cost(row))} {panel.unit} {panel.name}, one client" for row in rows],
        "measured": [_convention(row, panel) for row in rows],
        "front": ["on the Pareto front" if row in kept else "not on the Pareto front" for row in rows],
    }


def _convention(row: Row, panel: Panel) -> str:
    source = row.memory_source if panel.field == "peak_memory_bytes" else f"convention {row.convention}"
    return f"{source}; protocol {row.protocol}"


def curve_chart(
    curves: Sequence[tuple[Row, int, Curve]], rows: Sequence[Row], x: str, y: str, name: str
) -> figure:
    """`loss` or `accuracy` over `rounds` or `megabytes`: a line for every row and seed."""
    labels = {"rounds": "round", "megabytes": "download + upload so far, one client (MB)"}
    heights = {"loss": "training loss", "accuracy": accuracy_label(rows)}
    chart = _figure(name, labels[x], DataRange1d())
    chart.yaxis.axis_label = heights[y]
    lines: list[DataRenderer] = []
    for row, seed, curve in curves:
        colour, marker = look(row, rows)
        names_of_row = {"row": [row_name(row, rows)] * len(curve.rounds), "seed": [seed] * len(curve.rounds)}
        columns = ("rounds", "stages", "loss", "megabytes", "accuracy")
        source = ColumnDataSource(names_of_row | {column: list(getattr(curve, column)) for column in columns})
        dash = DASHES[sorted(row.seeds).index(seed) % len(DASHES)]
        lines.append(chart.line(x, y, source=source, line_color=colour, line_width=2, line_dash=dash))
        chart.scatter(x, y, source=source, color=colour, marker=SHAPES[marker], size=4)
    tooltips = [("row", "@row"), ("seed", "@seed"), ("round", "@rounds"), ("stage", "@stages")]
    tooltips += [(heights[y], f"@{y}{{0.000}}"), ("MB so far", "@megabytes{0.00}")]
    chart.add_tools(HoverTool(renderers=lines, tooltips=tooltips, line_policy="nearest"))
    return chart


def _figure(name: str, label: str, span: Range, *, log: bool = False) -> figure:
    """An empty chart as wide as its place; nothing catches a finger that wants to scroll the page."""
    chart = figure(
        name=name,
        height=300,
        sizing_mode="stretch_width",
        x_range=span,
        x_axis_type="log" if log else "linear",
        tools="pan,box_zoom,wheel_zoom,reset,save",
        active_drag=None,
        toolbar_location="above",
        x_axis_label=label,
    )
    chart.toolbar.logo = None
    chart.xaxis.formatter = NumeralTickFormatter(format="0,0.[00]")
    return chart
