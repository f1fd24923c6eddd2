"""The leaderboard as text and as files; CSV and JSON hold base units, only the Markdown table divides."""

import csv
import io
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from fedbench.config.load import UNTRAINED
from fedbench.conventions import CONVENTIONS
from fedbench.escaping import in_markdown, in_sheet
from fedbench.files import write_atomically
from fedbench.protocols import PROTOCOLS
from fedbench.reporting.paired import METHOD
from fedbench.reporting.ranking import (
    REFERENCE,
    Row,
    by_table,
    leaderboard,
    located,
    reworded,
    row_name,
    short_name,
)
from fedbench.tables import GFLOPS, MB, MIB, bullets, latex, latex_text, markdown, number, with_ratio
from fedbench.tracking.run_directory import write_json
from fedbench.tracking.runs import Run, read_runs

__all__ = ["Row", "Run", "leaderboard", "read_runs", "render", "write"]

Column = tuple[str, Callable[[Row], str]]
MANY = 3  # rows that a note names
EQUAL_WORK = 0.005  # a share of the reference's local steps: what rounding to whole batches may do
MODEL = "secure aggregation MB (model)"
PERSONAL = "personal %"
OF_FEATURES = ("rank of features", "uniformity", "alignment")
LEFT: list[Column] = [
    ("#", lambda row: place(row)),
    ("strategy", lambda row: short_name(row.strategy)[0]),
    ("ssl", lambda row: row.ssl),
    ("settings", lambda row: settings(row)),
]
ACCURACY: list[Column] = [
    ("tuned", lambda row: row.tuned or "-"),
    ("seeds", lambda row: str(len(row.seeds))),
    ("top-1 %", lambda row: percent(row.top1_mean, row.top1_std)),
    (PERSONAL, lambda row: personal(row)),
    ("floor %", lambda row: percent(row.untrained_top1_mean)),
    ("gain", lambda row: f"{100 * row.gain:+.1f}"),
    ("minus fedssl [95 %]", lambda row: difference(row)),
    ("rank of features", lambda row: known(row.effective_rank, 1)),
    ("uniformity", lambda row: "-" if row.uniformity is None else f"{row.uniformity:.2f}"),
    ("alignment", lambda row: "-" if row.alignment is None else f"{row.alignment:.2f}"),
    ("density %", lambda row: "-" if row.density is None else percent(row.density)),
    ("local steps", lambda row: known(row.local_steps, 1)),
    ("wall s", lambda row: number(row.seconds)),
]
COSTS: list[Column] = [
    ("client GFLOPs", lambda row: with_ratio(row.flops / GFLOPS, row.flops_ratio)),
    ("server GFLOPs", lambda row: known(row.server_flops, GFLOPS)),
    ("all GFLOPs", lambda row: known(row.total_flops, GFLOPS, row.total_flops_ratio)),
    ("memory MiB", lambda row: with_ratio(row.peak_memory_bytes / MIB, row.peak_memory_ratio)),
    ("server MiB", lambda row: known(row.server_peak_memory_bytes, MIB)),
    ("down MB", lambda row: with_ratio(row.download_bytes / MB, row.download_ratio)),
    ("up MB", lambda row: with_ratio(row.upload_bytes / MB, row.upload_ratio)),
    ("epsilon (delta)", lambda row: privacy(row)),
    (MODEL, lambda row: known(row.secure_aggregation_bytes, MB)),
]


def write(rows: Sequence[Row], folder: Path) -> None:
    """Write `leaderboard.md`, `leaderboard.csv` and `leaderboard.json` into `folder`."""
    rows = [located(row, folder) for row in rows]
    write_atomically(folder / "leaderboard.md", render(rows).encode())
    write_atomically(folder / "leaderboard.csv", csv_text(rows).encode())
    write_json(folder / "leaderboard.json", [asdict(row) for row in rows])


def csv_text(rows: Sequence[Row]) -> str:
    """A line for each row, in base units; several values of one field stand in one cell, see `plain`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: plain(value) for key, value in asdict(row).items()} for row in rows)
    return text.getvalue()


def plain(value: object) -> object:
    """For a cell of a table: several values as one text, spaces between them, quoted where one has a space.

    No text is a spreadsheet's formula, see `in_sheet`.
    """
    text = shlex.join(map(str, value)) if isinstance(value, tuple) else value
    return in_sheet(text) if isinstance(text, str) else text


def render(rows: Sequence[Row]) -> str:
    """Markdown with aligned columns, which also reads in a terminal: one table per comparable set."""
    if not rows:
        return "No finished run.\n"
    return "\n".join(section(table) for table in by_table([reworded(row, in_markdown) for row in rows]))


def section(rows: Sequence[Row], more: Sequence[Column] = ()) -> str:
    """Accuracies, with `more` columns at their end, then costs, a title and notes; the words are Markdown."""
    tables = f"{_table(rows, LEFT, [*ACCURACY, *more])}\n\n{_table(rows, LEFT[1:], COSTS)}"
    return f"### {rows[0].title}\n\n{tables}\n\n{bullets(*notes(rows))}\n"


def latex_section(rows: Sequence[Row], more: Sequence[Column] = ()) -> str:
    """The two tables of `section` as booktabs tabulars, title and notes as comments.

    The highest mean is bold only where the intervals separate it from every other row.
    """
    tables = [_columns(rows, LEFT, [*ACCURACY, *more]), _columns(rows, LEFT[1:], COSTS)]
    comments = [f"% {line}" for line in (rows[0].title, *notes(rows)) for line in line.splitlines()]
    return "\n\n".join(["\n".join(comments), *(_latex(rows, *columns) for columns in tables)]) + "\n"


def _latex(rows: Sequence[Row], left: Sequence[Column], right: Sequence[Column]) -> str:
    def text(header: str, shown: str, row: Row) -> str:
        bold = header == "top-1 %" and is_first_alone(row, rows)
        return rf"\textbf{{{latex_text(shown)}}}" if bold else latex_text(shown)

    columns = (*left, *right)
    cells = [[text(header, cell(row), row) for header, cell in columns] for row in rows]
    return latex([header for header, _ in columns], cells, left=len(left))


def is_first_alone(row: Row, rows: Sequence[Row]) -> bool:
    """Whether the intervals separate a row from all others that have a rank."""
    return row.rank == 1 and all(other.rank != 1 for other in rows if other is not row) and _rivals(rows) > 1


def _rivals(rows: Sequence[Row]) -> int:
    return sum(row.rank is not None for row in rows)


def _table(rows: Sequence[Row], left: Sequence[Column], right: Sequence[Column]) -> str:
    left, right = _columns(rows, left, right)
    cells = [[cell(row) for _, cell in (*left, *right)] for row in rows]
    return markdown([header for header, _ in (*left, *right)], cells, left=len(left))


def _columns(
    rows: Sequence[Row], left: Sequence[Column], right: Sequence[Column]
) -> tuple[list[Column], list[Column]]:
    """Without those that say nothing of any row."""
    silent = {
        "settings": not any(settings(row) for row in rows),
        "tuned": not any(row.tuned for row in rows),
        PERSONAL: not any(row.personal_top1_mean is not None for row in rows),
        "epsilon (delta)": not any(row.epsilon is not None for row in rows),
        MODEL: not any(row.secure_aggregation_bytes is not None for row in rows),
        "density %": not any(row.density is not None for row in rows),
        **dict.fromkeys(OF_FEATURES, not any(row.effective_rank is not None for row in rows)),
    }
    shown = [[column for column in columns if not silent.get(column[0])] for columns in (left, right)]
    return shown[0], shown[1]


def settings(row: Row) -> str:
    """What its short name does not tell: fields of its strategy, then settings in which the rows differ."""
    return " ".join([*short_name(row.strategy)[1], row.variant]).strip()


def difference(row: Row) -> str:
    """Paired difference to the reference in points, with its interval: `-1.4 [-3.0, +0.2]`."""
    if row.difference is None or row.difference_low is None or row.difference_high is None:
        return "-"
    return f"{100 * row.difference:+.1f} [{100 * row.difference_low:+.1f}, {100 * row.difference_high:+.1f}]"


def known(value: float | None, unit: int, ratio: float | None = None) -> str:
    """A figure in a unit of so many base units, with its ratio; `-` where it was not noted."""
    return "-" if value is None else with_ratio(value / unit, ratio)


def privacy(row: Row) -> str:
    """What it has spent, `12.9 (1e-05)`; `-` where nothing bounds it."""
    return "-" if row.epsilon is None else f"{row.epsilon:.3g} ({row.delta:g})"


def personal(row: Row) -> str:
    """Accuracy of the clients' own models; `-` where they have none."""
    return "-" if row.personal_top1_mean is None else percent(row.personal_top1_mean, row.personal_top1_std)


def place(row: Row) -> str:
    """Its rank, or that it is a point of reference, or that nothing can be said."""
    return "ref" if row.reference else "-" if row.rank is None else str(row.rank)


def notes(rows: Sequence[Row]) -> list[str]:
    """How the figures of a table were counted, and what is not alike in its rows."""
    first = rows[0]
    rule = CONVENTIONS[first.convention]
    judged = "the same" if first.evaluation_data_hash == first.data_hash else first.evaluation_data_hash
    seeds = sorted({seed for row in rows for seed in row.seeds})
    sources = ", ".join(sorted({row.memory_source for row in rows if row.memory_source}))
    machines = ", ".join(sorted({row.machine for row in rows}))
    own = f" ({first.protocol_settings})" if first.protocol_settings else ""
    return [
        *gaps(rows),
        *references(rows),
        *training(rows),
        f"Protocol `{first.protocol}`: {PROTOCOLS[first.protocol]}{own}. Mean ± sample "
        "standard deviation over seeds. Floor: the same protocol on the untrained encoder; gain: points above it.",
        *of_clients(rows),
        *features(rows),
        f"Convention `{first.convention}`. FLOPs: {rule.flops}. Bytes: {rule.traffic}.",
        "`#`: a row ranks below others only where each of these is better than it and than all that rank no "
        f"higher; `-`: nothing can be said. Better: {METHOD}.",
        *untuned(rows),
        *steps(rows),
        "Client: total of all clients in the run / registered clients; memory: highest peak of any. Server: its "
        "own training. All: every client and the server.",
        f"Memory source: {sources or 'nobody trained'}.",
        "GFLOPs = 10^9 FLOPs, 1 multiply-add = 2 FLOPs; MiB = 2^20 bytes; MB = 10^6 bytes.",
        "(0.50x): this row / the `fedssl` row of the same SSL method that agrees in all that costs depend on.",
        f"Seeds {_list(seeds)}; data {first.data_hash}, judged on {judged}; wall time on {machines}.",
        *protection(rows),
        *modelled(rows),
        *without_ratio(rows),
        *kernels(rows),
        *code(rows),
    ]


def features(rows: Sequence[Row]) -> list[str]:
    """What is said of how features lie, where that is known."""
    if all(row.effective_rank is None for row in rows):
        return []
    gates = any(row.density is not None for row in rows)
    return [
        "Features of test images, the encoder frozen: effective rank (1: all on a line, collapsed); uniformity "
        "(0: all alike; lower: more even on a sphere), alignment of two views (0: the same), Wang and Isola 2020.",
        *(["Density: of gated channels, the share that inference needs; FLOPs are of all."] if gates else []),
    ]


def of_clients(rows: Sequence[Row]) -> list[str]:
    """Whose accuracy the personal one is, where there is one."""
    if all(row.personal_top1_mean is None for row in rows):
        return []
    return [
        f"{PERSONAL}: the same protocol on the model that each client has of its own, mean over all clients; all "
        "other figures of accuracy are of the server's. -: clients have none."
    ]


def protection(rows: Sequence[Row]) -> list[str]:
    """What epsilon bounds, where there is one."""
    if all(row.epsilon is None for row in rows):
        return []
    return [
        "epsilon (delta): of one run, bounds what all models that its server sends out tell of one client to "
        "those who do not know the seed; of these figures themselves it says nothing. -: no bound."
    ]


def modelled(rows: Sequence[Row]) -> list[str]:
    """What secure aggregation would add, where that was asked."""
    if all(row.secure_aggregation_bytes is None for row in rows):
        return []
    return [
        f"{MODEL}: what keys, shares, masks and unmasking would add to a client's bytes, both ways, by the "
        "formulas of Bonawitz et al. 2017. Nothing was encrypted; no other figure has a part of it. -: not asked."
    ]


def training(rows: Sequence[Row]) -> list[str]:
    """How the rows were trained, as far as they share it, and what to look up in each."""
    trained = [row for row in rows if not row.reference] or [row for row in rows if row.rounds]
    if not trained:
        return []
    first = trained[0]
    said = {
        "rounds": f"{first.rounds} rounds",
        "local_epochs": f"{first.local_epochs} local epoch(s)",
        "batch_size": f"batch {first.batch_size}",
        "learning_rate": f"learning rate {first.learning_rate:.4g}",
        "participants": f"{first.participants} client(s) a round",
        "augmentation": f"augmentation {first.augmentation}",
    }
    shared = [key for key in said if len({getattr(row, key) for row in trained}) == 1]
    unlike = [key.replace("_", " ") for key in said if key not in shared]
    alike = f"Trained: {'; '.join(said[key] for key in shared)}." if shared else ""
    return [" ".join(filter(None, [alike, f"Unlike, see `settings`: {', '.join(unlike)}." if unlike else ""]))]


def without_ratio(rows: Sequence[Row]) -> list[str]:
    """Why rows have no ratio to the reference."""
    found = [f"{row_name(row, rows)} ({row.no_ratio})" for row in rows if row.no_ratio]
    return [f"Without a ratio: {'; '.join(found)}."] if found else []


def code(rows: Sequence[Row]) -> list[str]:
    """What ran the rows of a table."""
    found = sorted({one for row in rows for one in row.code})
    changed = "; +: with changes that are in no commit" if any(one.endswith("+") for one in found) else ""
    if len(found) == 1:
        return [f"Code: {found[0]}{changed}."]
    return [f"SEVERAL STATES OF THE CODE, whose figures may differ: {', '.join(found)}{changed}."]


def kernels(rows: Sequence[Row]) -> list[str]:
    """Where runs of several kinds of CPU kernels meet: bit for bit the same configuration would differ."""
    found = sorted({one for row in rows for one in row.numerics})
    if found == ["portable"]:
        return ["CPU kernels: portable; the same seed gives the same figure on every x86-64 processor."]
    if len(found) == 1:
        return [f"CPU kernels: {found[0]}; on another kind the same seed gives another figure."]
    return [f"SEVERAL KINDS OF CPU KERNELS, which round differently, so seeds do not pair: {', '.join(found)}."]


def references(rows: Sequence[Row]) -> list[str]:
    """What the points of reference in a table are."""
    words = {
        "centralised": "centralised, one client has all the data (its bytes are those of a federation of one; "
        "collecting the images is not counted)",
        UNTRAINED: "the untrained encoder, no federation at all"
        + (": under this protocol supervised training from scratch" if rows[0].protocol == "finetune" else ""),
    }
    found = [text for kind, text in words.items() if any(row.reference == kind for row in rows)]
    return [f"ref, a point of reference, not ranked: {'; '.join(found)}."] if found else []


def untuned(rows: Sequence[Row]) -> list[str]:
    """That rows of a table were not tuned alike."""
    efforts = {row.tuned for row in rows if not row.reference}
    if len(efforts) < 2:
        return []
    found = [f"{row_name(row, rows)} ({row.tuned or 'not tuned'})" for row in rows if not row.reference]
    return [f"NOT TUNED ALIKE: {', '.join(found)}."]


def steps(rows: Sequence[Row]) -> list[str]:
    """Rows whose clients take another number of local steps than the reference's, and why that may be."""
    known = [row for row in rows if row.local_steps and not row.reference]
    base = next((row.local_steps for row in known if row.strategy == REFERENCE), None)
    if base is None:
        return []
    unlike: dict[str, list[Row]] = {}
    for row in known:
        if row.local_steps is not None and abs(row.local_steps / base - 1) > EQUAL_WORK:
            unlike.setdefault(f"{row.local_steps / base:.2f}x", []).append(row)
    found = [f"{_names(alike, rows)} {ratio}" for ratio, alike in unlike.items()]
    why = "a server that trains holds images out, whose steps its clients do not take"
    return [f"Local steps unlike {REFERENCE}'s: {', '.join(found)} ({why})."] if found else []


def _names(some: Sequence[Row], rows: Sequence[Row]) -> str:
    """Rows by name, or where these are many how many, and of which strategies."""
    if len(some) <= MANY:
        return ", ".join(row_name(row, rows) for row in some)
    strategies = sorted({short_name(row.strategy)[0] for row in some})
    return f"{len(some)} rows of {', '.join(strategies)}"


def gaps(rows: Sequence[Row]) -> list[str]:
    """Rows whose means are over fewer seeds than they should be."""
    missing = [f"{row_name(row, rows)} lacks {_list(row.missing_seeds)}" for row in rows if row.missing_seeds]
    lost = [f"{row_name(row, rows)} without {_list(row.diverged_seeds)}" for row in rows if row.diverged_seeds]
    return [
        *([f"Missing seeds: {'; '.join(missing)}."] if missing else []),
        *([f"Means without the seeds that diverged: {'; '.join(lost)}."] if lost else []),
    ]


def _list(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))


def percent(mean: float, std: float | None = None) -> str:
    """Fractions in percent: `87.6 ± 1.4`, without the spread where there is none."""
    return f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")
