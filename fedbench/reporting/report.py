"""`report`: finished runs of several folders in one table, who is best within a budget, and a page to look at."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedbench.errors import UserError
from fedbench.escaping import in_markdown, printable, printable_tree
from fedbench.files import write_atomically
from fedbench.reporting.comparison import Cell
from fedbench.reporting.iso_budget import BUDGET_NOTE, budget_line, iso_budgets
from fedbench.reporting.leaderboard import Column, csv_text, latex_section, section
from fedbench.reporting.page import html_page
from fedbench.reporting.pareto import FRONT_NOTE, PANELS, front, front_names, plot
from fedbench.reporting.ranking import Row, by_table, located, ranked, reworded
from fedbench.reporting.results import results
from fedbench.tables import bullets, markdown
from fedbench.tracking.run_directory import write_json
from fedbench.tracking.runs import Run, gather


def report(paths: Iterable[Path], out: Path, results_file: Path | None = None, latex: bool = False) -> str:
    """Read the runs, write `report.md`, `.csv`, `.json`, `.png` and `.html` into `out`; returns the Markdown.

    Args:
        results_file: where rows are written such that `reproduce` can run them again.
        latex: also write `report.tex`.

    Raises:
        UserError: for a path that is no folder, or where there is no finished run at all.
    """
    paths = list(paths)
    runs, left_out = gather(paths)
    if not runs:
        found = "".join(f"; left out: {line}" for line in _lines(left_out))
        raise UserError(f"no finished run in {', '.join(map(str, paths))}{found}; `run` makes some")
    tables = _tables(runs, out)
    rows = [row for table in tables for row, _ in table]
    text = render(rows, _lines(left_out))
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "report.md", text.encode())
    write_atomically(out / "report.csv", csv_text(rows).encode())
    write_json(out / "report.json", to_dict(rows, left_out))
    plot(rows, out / "report.png")
    write_atomically(out / "report.html", html_page(tables, _lines(left_out)).encode())
    if latex:
        write_atomically(out / "report.tex", to_latex(rows).encode())
    if results_file:
        write_json(results_file, printable_tree(results(tables)))
    return text


def write_page(paths: Iterable[Path], out: Path) -> Path | None:
    """Write `report.html` of the finished runs into `out`; None where there is none."""
    runs, left_out = gather(paths)
    if not runs:
        return None
    page = out / "report.html"
    write_atomically(page, html_page(_tables(runs, out), _lines(left_out)).encode())
    return page


def _tables(runs: Iterable[Run], out: Path) -> list[list[tuple[Row, Cell]]]:
    """See `ranked`; the rows name their runs as seen from `out`."""
    return [[(located(row, out), cell) for row, cell in table] for table in ranked(runs)]


def render(rows: Sequence[Row], left_out: Sequence[str]) -> str:
    """Markdown: every table with its front, its notes and its budgets, then what was left out."""
    words = [reworded(row, in_markdown) for row in rows]
    tables = [f"{section(table, [_front_column(table)])}{_budgets(table)}" for table in by_table(words)]
    lines = bullets(*map(in_markdown, left_out))
    return "\n".join([*tables, *([f"### Left out\n\n{lines}\n"] if left_out else [])])


def to_latex(rows: Sequence[Row]) -> str:
    """Every table as booktabs tabulars, to be read by `\\input`."""
    tables = [latex_section(table, [_front_column(table)]) for table in by_table(rows)]
    return "\n".join(["% Written by fedbench report --latex; it needs \\usepackage{booktabs}.", *tables])


def _front_column(rows: Sequence[Row]) -> Column:
    return "Pareto front", lambda row: front_names(row, rows)


def _budgets(rows: Sequence[Row]) -> str:
    lines = [budget_line(answer, rows) for answer in iso_budgets(rows)]
    table = markdown(["within", "best", "top-1 %", "rows within"], lines, left=2)
    return f"{bullets(FRONT_NOTE)}\n\n{table}\n\n{bullets(BUDGET_NOTE)}\n"


def to_dict(rows: Sequence[Row], left_out: Mapping[Path, str]) -> dict[str, Any]:
    """All of it in base units; in `budgets`, `best` are the positions of rows in `rows`."""
    return {
        "rows": [asdict(row) | {"pareto_front": _fronts(row, rows)} for row in rows],
        "budgets": [
            {
                "table": table[0].table,
                "resource": answer.panel.field,
                "source": answer.source or None,
                "limit": answer.limit * answer.panel.base_units,
                "rows_within": answer.within,
                "best": [rows.index(row) for row in answer.best],
            }
            for table in by_table(rows)
            for answer in iso_budgets(table)
        ],
        "left_out": printable_tree({str(path): reason for path, reason in left_out.items()}),
    }


def _fronts(row: Row, rows: Sequence[Row]) -> list[str]:
    table = [other for other in rows if other.table == row.table]
    return [panel.field for panel in PANELS if row in front(table, panel)]


def _lines(left_out: Mapping[Path, str]) -> list[str]:
    return [printable(f"{path}: {reason}") for path, reason in left_out.items()]
