"""The leaderboard as text and as files; CSV and JSON hold base units, only the Markdown table divides."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from itertools import groupby
from pathlib import Path

from fedbench.conventions import CONVENTIONS
from fedbench.files import write_atomically
from fedbench.tables import GFLOPS, MB, MIB, bullets, markdown, number, with_ratio
from fedbench.tracking.ranking import Row, leaderboard
from fedbench.tracking.run_directory import write_json
from fedbench.tracking.runs import Run, read_runs

__all__ = ["Row", "Run", "leaderboard", "read_runs", "render", "write"]

Column = tuple[str, Callable[[Row], str]]
LEFT: list[Column] = [
    ("#", lambda row: str(row.rank)),
    ("strategy", lambda row: row.strategy),
    ("ssl", lambda row: row.ssl),
    ("variant", lambda row: row.variant),
]
RIGHT: list[Column] = [
    ("seeds", lambda row: str(len(row.seeds))),
    ("top-1 %", lambda row: _percent(row.linear_top1_mean, row.linear_top1_std)),
    ("floor %", lambda row: _percent(row.untrained_top1_mean)),
    ("gain", lambda row: f"{100 * row.gain:+.1f}"),
    ("GFLOPs", lambda row: with_ratio(row.flops / GFLOPS, row.flops_ratio)),
    ("memory MiB", lambda row: with_ratio(row.peak_memory_bytes / MIB, row.peak_memory_ratio)),
    ("down MB", lambda row: with_ratio(row.download_bytes / MB, row.download_ratio)),
    ("up MB", lambda row: with_ratio(row.upload_bytes / MB, row.upload_ratio)),
    ("wall s", lambda row: number(row.seconds)),
]


def write(rows: Sequence[Row], folder: Path) -> None:
    """Write `leaderboard.md`, `leaderboard.csv` and `leaderboard.json` into `folder`."""
    write_atomically(folder / "leaderboard.md", render(rows).encode())
    write_atomically(folder / "leaderboard.csv", _csv(rows).encode())
    write_json(folder / "leaderboard.json", [asdict(row) for row in rows])


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**asdict(row), "seeds": " ".join(map(str, row.seeds))} for row in rows)
    return text.getvalue()


def render(rows: Sequence[Row]) -> str:
    """Markdown with aligned columns, which also reads in a terminal: one table per comparable set."""
    if not rows:
        return "No finished run.\n"
    tables = [list(table) for _, table in groupby(rows, key=lambda row: row.table)]
    return "\n".join(_section(table) for table in tables)


def _section(rows: Sequence[Row]) -> str:
    return f"### {rows[0].title}\n\n{_table(rows)}\n\n{_footer(rows)}\n"


def _table(rows: Sequence[Row]) -> str:
    shown = [column for column in LEFT if column[0] != "variant" or any(row.variant for row in rows)]
    columns = [*shown, *RIGHT]
    cells = [[cell(row) for _, cell in columns] for row in rows]
    return markdown([header for header, _ in columns], cells, left=len(shown))


def _footer(rows: Sequence[Row]) -> str:
    first = rows[0]
    rule = CONVENTIONS[first.convention]
    seeds = sorted({seed for row in rows for seed in row.seeds})
    sources = ", ".join(sorted({row.memory_source for row in rows}))
    machines = ", ".join(sorted({row.machine for row in rows}))
    return bullets(
        f"Protocol `{first.protocol}`, on the frozen encoder, last epoch; mean ± sample standard deviation over "
        "seeds. Floor: the same probe on the untrained encoder; gain: points above it.",
        f"Convention `{first.convention}`. FLOPs: {rule.flops}. Bytes: {rule.traffic}.",
        "Client: total of all clients in the run / registered clients; memory: highest peak of any.",
        f"Memory source: {sources}.",
        "GFLOPs = 10^9 FLOPs, 1 multiply-add = 2 FLOPs; MiB = 2^20 bytes; MB = 10^6 bytes.",
        "(0.50x): this row / the `fedssl` row with the same SSL method.",
        f"Seeds {', '.join(map(str, seeds))}; data {first.data_hash}; wall time on {machines}.",
    )


def _percent(mean: float, std: float | None = None) -> str:
    return f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")
