"""The page of `report`: one HTML file that works offline, with Bokeh's own script in it and page.js."""

import re
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from bokeh.embed import file_html
from bokeh.models import Model
from bokeh.resources import INLINE

from fedbench.reporting.charts import GLYPHS, cost_chart, curve_chart, look, switch
from fedbench.reporting.comparison import Cell
from fedbench.reporting.curves import Curve, read_curve
from fedbench.reporting.iso_budget import BUDGET_NOTE, budget_line, choices, iso_budgets
from fedbench.reporting.leaderboard import gaps, notes
from fedbench.reporting.pareto import FRONT_NOTE, PANELS
from fedbench.reporting.ranking import Row, drawn, row_name
from fedbench.reporting.sorted_table import grid

SCRIPTS = re.compile(r"<script(?: type=\"text/javascript\")?>(.*?)</script>", re.DOTALL)  # not those of data
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none';"
TEMPLATE, SCRIPT = (Path(__file__).with_name(f"page.{suffix}") for suffix in ("html", "js"))
Ranked = Sequence[tuple[Row, Cell]]


def html_page(tables: Sequence[Ranked], left_out: Sequence[str]) -> str:
    """The page with a section for each table; what is not ours to trust is escaped in the template or by Bokeh."""
    parts = [_section(table, f"table{number}") for number, table in enumerate(tables, start=1)]
    variables = {
        "tables": [words for words, _ in parts],
        "left_out": left_out,
        "budget_note": BUDGET_NOTE,
        "script": SCRIPT.read_text(encoding="utf-8"),
    }
    models = [model for _, models in parts for model in models]
    template = TEMPLATE.read_text(encoding="utf-8")
    return guarded(file_html(models, INLINE, "fedbench report", template=template, template_variables=variables))


def guarded(page: str) -> str:
    """With a policy in its head: only the scripts that stand in it now run, and nothing is fetched or sent."""
    page = page.replace("\r\n", "\n")  # as a browser reads it
    digests = (sha256(script.encode()).digest() for script in SCRIPTS.findall(page))
    hashes = " ".join(f"'sha256-{b64encode(digest).decode()}'" for digest in digests)
    meta = f'<meta http-equiv="Content-Security-Policy" content="{POLICY} script-src {hashes}">'
    return page.replace("<head>", f"<head>\n    {meta}", 1)


def _section(table: Ranked, name: str) -> tuple[dict[str, Any], list[Model]]:
    """What the template says of one table, and Bokeh's models, which it names."""
    rows = [row for row, _ in table]
    curves, without = _curves(table)
    costs = [cost_chart(rows, panel, f"{name}-{panel.field}") for panel in PANELS]
    over_rounds = _curve_charts(curves, rows, name)
    words = {
        "title": rows[0].title,
        "gaps": gaps(rows),
        "notes": [note.replace("`", "") for note in [*notes(rows)[len(gaps(rows)) :], FRONT_NOTE]],
        "grid": grid(rows),
        "key": [_key(row, rows) for row in sorted(drawn(rows), key=lambda one: row_name(one, rows))],
        "costs": [chart.name for chart in costs],
        "choices": choices(rows),
        "budgets": [budget_line(answer, rows) for answer in iso_budgets(rows)],
        "curves": [chart.name for chart in over_rounds],
        "curve_notes": _curve_notes(curves, without, rows),
    }
    return words, [*costs, *over_rounds]


def _key(row: Row, rows: Sequence[Row]) -> dict[str, str]:
    colour, marker = look(row, rows)
    return {"colour": colour, "glyph": GLYPHS[marker], "name": row_name(row, rows), "switch": switch(row, rows)}


def _curves(table: Ranked) -> tuple[list[tuple[Row, int, Curve]], list[str]]:
    """The curves that could be read, and the names of the runs of which none could."""
    rows = [row for row, _ in table]
    found = [(row, run.seed, read_curve(run)) for row, cell in table for run in cell.runs if drawn([row])]
    without = [f"{row_name(row, rows)} seed {seed}" for row, seed, curve in found if curve is None]
    return [(row, seed, curve) for row, seed, curve in found if curve is not None], without


def _curve_charts(curves: Sequence[tuple[Row, int, Curve]], rows: Sequence[Row], name: str) -> list[Model]:
    probed = [curve for curve in curves if curve[2].has_accuracy]
    accuracy = [(probed, "accuracy", x) for x in ("rounds", "megabytes", "gflops")]
    loss = [(list(curves), "loss", x) for x in ("rounds", "megabytes")]
    return [curve_chart(found, rows, x, y, f"{name}-{y}-{x}") for found, y, x in [*accuracy, *loss] if found]


def _curve_notes(curves: Sequence[tuple[Row, int, Curve]], without: list[str], rows: Sequence[Row]) -> list[str]:
    probed = [curve for _, _, curve in curves if curve.has_accuracy]
    unprobed = [f"{row_name(row, rows)} seed {seed}" for row, seed, curve in curves if not curve.has_accuracy]
    loss = (
        "Training loss: what the clients minimise, their mean weighted by samples. Losses of different SSL "
        "methods, or of encoders of different depth, are not on one scale. Bytes: whole payloads, download and "
        "upload; bytes and FLOPs: total of all clients / registered clients."
    )
    found = f"Accuracy over rounds: protocol {rows[0].protocol}, on the encoder as it was after that round."
    band = (
        "Lines: means over the seeds of a row, colours as above; bands: from the lowest to the highest seed. "
        "Drawn are the rounds in which every seed has a value."
    )
    return [
        *([band] if curves else []),
        *([loss] if curves else []),
        *([f"No readable rounds.jsonl, so no curve: {', '.join(without)}."] if without else []),
        *([found] if probed else ["Accuracy over rounds was not measured in these runs."]),
        *([f"Accuracy over rounds was not measured in {', '.join(unprobed)}."] if probed and unprobed else []),
    ]
