"""The interactive pictures of the page: accuracy against a cost, and curves over rounds, bytes and FLOPs."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from bokeh.models import ColumnDataSource, DataRange1d, HoverTool, NumeralTickFormatter, Range1d
from bokeh.models.annotations import Span
from bokeh.models.ranges import Range
from bokeh.models.renderers import DataRenderer
from bokeh.plotting import figure

from fedbench.reporting.curves import Curve, over_seeds
from fedbench.reporting.leaderboard import percent
from fedbench.reporting.pareto import COLOURS, Panel, accuracy_label, front, like_measured, style
from fedbench.reporting.ranking import Row, drawn, row_name
from fedbench.tables import number

GLYPHS = ("●", "■", "▲", "◆", "▼", "✚", "✖")  # as MARKERS of pareto.py
SHAPES = ("circle", "square", "triangle", "diamond", "inverted_triangle", "cross", "x")
AXES = {
    "rounds": "round",
    "megabytes": "bytes so far, one client (MB)",
    "gflops": "FLOPs so far, one client (10^9)",
}


def names(rows: Sequence[Row]) -> list[str]:
    """The rows' names in the order that gives them colours: not by rank, so that a colour stays with its name."""
    return sorted(row_name(row, rows) for row in drawn(rows))


def look(row: Row, rows: Sequence[Row]) -> tuple[str, int]:
    """Colour, and number of the marker."""
    colour, marker = style(names(rows).index(row_name(row, rows)))
    return COLOURS[colour], marker


def switch(row: Row, rows: Sequence[Row]) -> str:
    """What everything drawn of a row is called: the page hides it by this name."""
    return f"table{row.table}-row{names(rows).index(row_name(row, rows))}"


def floor_of(rows: Sequence[Row]) -> float:
    """Top-1 of the untrained encoder in percent, the mean over the rows."""
    return 100 * sum(row.untrained_top1_mean for row in rows) / len(rows)


def cost_chart(rows: Sequence[Row], panel: Panel, name: str) -> figure:
    """Accuracy against one cost, with the front and the floor."""
    rows = drawn(rows)
    log = panel.is_log(rows)
    span = DataRange1d(range_padding=0.12) if log else Range1d(start=0, end=1.12 * max(map(panel.cost, rows)) or 1)
    chart = _figure(name, panel.label.replace(")", ", log)") if log else panel.label, span, log=log)
    chart.yaxis.axis_label = accuracy_label(rows)
    floor, points = floor_of(rows), [_point(row, rows, panel) for row in rows]
    low, high = min(floor, *(one["low"] for one in points)), max(floor, *(one["high"] for one in points))
    chart.y_range = Range1d(start=low - 0.06 * (high - low) - 0.1, end=high + 0.08 * (high - low) + 0.1)
    chart.add_layout(Span(location=floor, dimension="width", line_color="#777", line_dash="dashed"))
    _draw_front(chart, rows, panel)
    dots = [_draw_point(chart, row, rows, point) for row, point in zip(rows, points, strict=True)]
    tooltips = [(word, f"@{word}") for word in ("row", "accuracy", "seeds", "price", "measured", "front")]
    chart.add_tools(HoverTool(renderers=dots, tooltips=tooltips))
    return chart


def _draw_front(chart: figure, rows: Sequence[Row], panel: Panel) -> None:
    for group in like_measured(rows, panel):
        kept = front(group, panel)
        if kept:
            y = [100 * row.top1_mean for row in kept]
            chart.step([panel.cost(row) for row in kept], y, mode="after", line_color="#999")


def _draw_point(chart: figure, row: Row, rows: Sequence[Row], point: Mapping[str, Any]) -> DataRenderer:
    """A dot with its spread; returns the dot."""
    colour, marker = look(row, rows)
    source, name = ColumnDataSource({key: [value] for key, value in point.items()}), switch(row, rows)
    chart.segment("cost", "low", "cost", "high", source=source, line_color=colour, line_width=2, name=name)
    return chart.scatter("cost", "top1", source=source, color=colour, marker=SHAPES[marker], size=12, name=name)


def _point(row: Row, rows: Sequence[Row], panel: Panel) -> dict[str, Any]:
    """Where a dot is, and the words for hovering over it."""
    top1, spread = 100 * row.top1_mean, 100 * (row.top1_std or 0)
    accuracy, floor = percent(row.top1_mean, row.top1_std), percent(row.untrained_top1_mean)
    return {
        "cost": panel.cost(row),
        "top1": top1,
        "low": top1 - spread,
        "high": top1 + spread,
        "row": row_name(row, rows),
        "accuracy": f"{accuracy} %, {100 * row.gain:+.1f} over the floor of {floor} %",
        "seeds": ", ".join(map(str, row.seeds)),
        "price": f"{number(panel.cost(row))} {panel.unit} {panel.name}, one client",
        "measured": _convention(row, panel),
        "front": "on the Pareto front" if row in front(rows, panel) else "not on the Pareto front",
    }


def _convention(row: Row, panel: Panel) -> str:
    source = row.memory_source if panel.field == "peak_memory_bytes" else f"convention {row.convention}"
    return f"{source}; protocol {row.protocol}"


def curve_chart(
    curves: Sequence[tuple[Row, int, Curve]], rows: Sequence[Row], x: str, y: str, name: str
) -> figure:
    """`loss` or `accuracy` over `rounds`, `megabytes` or `gflops`: a row's mean, and a band over its seeds."""
    heights = {"loss": "training loss", "accuracy": accuracy_label(rows)}
    chart = _figure(name, AXES[x], DataRange1d())
    chart.yaxis.axis_label = heights[y]
    lines, ends = list[DataRenderer](), [0.0]
    for row, points, seeds in _bands(curves, y):
        lines.append(_draw_curve(chart, row, rows, ColumnDataSource({**points, **seeds}), (x, y)))
        ends += points[x]
    if y == "accuracy":
        floor = floor_of(rows)
        chart.line([0, max(ends)], [floor, floor], line_color="#777", line_dash="dashed")
    tooltips = [("row", "@row"), ("seeds", "@seeds"), ("round", "@rounds"), ("stage", "@stages")]
    tooltips += [(heights[y], f"@{y}{{0.000}}"), ("lowest, highest seed", "@low{0.000}, @high{0.000}")]
    tooltips += [("MB so far", "@megabytes{0.00}"), ("GFLOPs so far", "@gflops{0.00}")]
    chart.add_tools(HoverTool(renderers=lines, tooltips=tooltips, line_policy="nearest"))
    return chart


def _bands(
    curves: Sequence[tuple[Row, int, Curve]], y: str
) -> Iterator[tuple[Row, dict[str, list[float]], dict[str, list[str]]]]:
    """For each row with a point to show: its points, and the words that go with them."""
    for row, of_row in groupby(curves, key=lambda one: one[0]):
        seeds = list(of_row)
        points = over_seeds([curve for _, _, curve in seeds], y)
        if points["rounds"]:
            shown = ", ".join(str(seed) for _, seed, _ in seeds)
            yield row, points, {"seeds": [shown] * len(points["rounds"])}


def _draw_curve(
    chart: figure, row: Row, rows: Sequence[Row], source: ColumnDataSource, axes: tuple[str, str]
) -> DataRenderer:
    """Band, line and dots; returns what the pointer finds: the line, or the dot where one is all there is."""
    (x, y), (colour, marker), name = axes, look(row, rows), switch(row, rows)
    count = len(source.data["rounds"])
    source.add([row_name(row, rows)] * count, "row")
    if len(row.seeds) > 1:
        chart.varea(x, "low", "high", source=source, fill_color=colour, fill_alpha=0.18, name=name)
    line = chart.line(x, y, source=source, line_color=colour, line_width=2, name=name)
    dots = chart.scatter(x, y, source=source, color=colour, marker=SHAPES[marker], size=4, name=name)
    return line if count > 1 else dots


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
