"""The leaderboard for a terminal: eight columns that fit 80 letters, a legend, and where the rest is."""

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedbench.reporting.leaderboard import percent, place
from fedbench.reporting.ranking import Row, by_table, short_name
from fedbench.tables import GFLOPS, MB, MIB, with_ratio

WIDTH = 80  # where there is no terminal
FIGURES = ("top-1 %", "gain", "all GFLOPs", "client MiB", "client MB")
LEGEND = (
    "#: rank; -: nothing can be said; ref: a point of reference. gain: points above the untrained encoder. All "
    "GFLOPs: every client's and the server's; MiB: highest peak of a client's memory; MB: a client's download and "
    "upload; over the whole run. (0.50x): beside fedssl."
)


def show(rows: Sequence[Row], files: Sequence[Path], again: str = "") -> str:
    """The tables as text, as wide as the terminal.

    Args:
        files: where all figures are, with how each was counted.
        again: the command that adds seeds, for a table of one seed.
    """
    if not rows:
        return "No finished run.\n"
    console = Console(no_color=True, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = WIDTH
    with console.capture() as captured:
        for table in by_table(rows):
            console.print(f"\n{table[0].title}\n")
            console.print(_table(table))
            for mark, changes in _changes(table).values():
                console.print(f"{mark}: {', '.join(changes)}")
        console.print(f"\n{LEGEND}")
        if any(len(row.seeds) == 1 for row in rows if not row.reference):
            console.print(f"\nOne seed ranks nothing. {again}".rstrip())
        console.print(f"\nAll figures, and how each was counted: {', '.join(map(str, files))}", soft_wrap=True)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("#", no_wrap=True)
    table.add_column("strategy", overflow="fold", min_width=14)
    for header in FIGURES:
        table.add_column(header, justify="right", overflow="fold")
    changes = _changes(rows)
    several = len({row.ssl for row in rows if row.ssl}) > 1
    for number, row in enumerate(rows):
        mark = changes[number][0] if number in changes else ""
        words = [short_name(row.strategy)[0], row.ssl if several else "", mark]
        table.add_row(place(row), Text(" ".join(filter(None, words))), *_figures(row))
    return table


def _changes(rows: Sequence[Row]) -> dict[int, tuple[str, list[str]]]:
    """Number of a row -> its mark, and what its short name does not tell."""
    told = {number: [*short_name(row.strategy)[1], *row.variant.split()] for number, row in enumerate(rows)}
    changed = [number for number, words in told.items() if words]
    return {number: (f"[{mark}]", told[number]) for mark, number in enumerate(changed, start=1)}


def _figures(row: Row) -> list[str]:
    total = None if row.total_flops is None else row.total_flops / GFLOPS
    traffic = (row.download_bytes + row.upload_bytes) / MB
    return [
        percent(row.top1_mean, row.top1_std),
        f"{100 * row.gain:+.1f}",
        "-" if total is None else with_ratio(total, row.total_flops_ratio),
        with_ratio(row.peak_memory_bytes / MIB, row.peak_memory_ratio),
        with_ratio(traffic, _traffic_ratio(row)),
    ]


def _traffic_ratio(row: Row) -> float | None:
    """Of both directions together: the reference's bytes follow from this row's and the ratios."""
    if not row.download_ratio or not row.upload_ratio:
        return None
    reference = row.download_bytes / row.download_ratio + row.upload_bytes / row.upload_ratio
    return (row.download_bytes + row.upload_bytes) / reference
