"""A leaderboard as tables with a column for each strategy: accuracy, difference to FedSSL, costs; and a picture.

    python benchmarks/by_strategy.py LEADERBOARD.json PICTURE.png [ROW/STRATEGY - ROW/STRATEGY ...]

For the grids `methods`, `architectures` and `mae_cifar10`: a line is an SSL method, an architecture, or an SSL
method on a partition. `"mae, iid/fedmae - mae, iid/fedssl"` asks for the paired difference of two, with its 95 % t
interval.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from bytes_against_accuracy import paired

COLOURS = {
    "fedssl": "#0072b2",
    "prog_fedssl": "#e69f00",
    "lw_fedssl@v4": "#56b4e9",
    "lw_fedssl@v3": "#d55e00",
    "lw_fedssl@v4, calibrated": "#cc79a7",
    "fedmae": "#009e73",
}
ORDER = list(COLOURS)
Row = dict[str, Any]


def line_of(row: Row, rows: list[Row]) -> str:
    """What a row is of, besides its strategy."""
    several = len({other["ssl"] for other in rows}) > 1
    partition = re.search(r"clients \(([^)]*)\)", row["title"])
    transforms = re.search(r"encoder\.transforms=(\[.*?\]|\S+)", row["variant"])
    of = [
        row["ssl"] if several else "",
        partition[1] if partition and len({other["title"] for other in rows}) > 1 else "",
        re.sub(r"\((?:ratio=([\d.]+))?[^)]*\)", r" \1", transforms[1]).strip() if transforms else "",
        "" if transforms or several else "dense",
    ]
    return ", ".join(filter(None, of))


def column_of(row: Row) -> str:
    """The strategy, without its tuned rates."""
    name, *changes = row["strategy"].split("(")
    return f"{name}, calibrated" if name == "lw_fedssl@v4" and changes else str(name)


def of_accuracy(row: Row) -> str:
    """Mean and sample standard deviation over seeds, in %."""
    spread = "" if row["top1_std"] is None else f" ± {100 * row['top1_std']:.1f}"
    return f"{100 * row['top1_mean']:.1f}{spread}"


def of_difference(row: Row) -> str:
    """Paired difference to FedSSL of the same line, bold where the interval leaves zero out."""
    if row["difference"] is None:
        return "-"
    mean, low, high = (100 * row[key] for key in ("difference", "difference_low", "difference_high"))
    text = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def of_costs(row: Row) -> str:
    """GFLOPs of a client, of all with the server; memory; bytes down and up together."""
    flops, everybody = (f"{row[key] / 1e9:,.{0 if row[key] > 1e11 else 1}f}" for key in ("flops", "total_flops"))
    moved = (row["download_bytes"] + row["upload_bytes"]) / 1e6
    return f"{flops} / {everybody}; {row['peak_memory_bytes'] / 2**20:.1f} MiB; {moved:.1f} MB"


def show(cells: Mapping[tuple[str, str], Row], text: Callable[[Row], str]) -> None:
    """Print one table."""
    lines, columns = ({key[place]: None for key in cells} for place in (0, 1))
    names = [name for name in ORDER if name in columns]
    print("| | " + " | ".join(names) + " |\n|---" + "|--:" * len(names) + "|")
    for line in lines:
        found = [cells.get((line, name)) for name in names]
        print(f"| {line} | " + " | ".join(text(row) if row else "" for row in found) + " |")
    print()


def draw(cells: Mapping[tuple[str, str], Row], picture: str) -> None:
    """Accuracy of every cell, and the untrained encoder's as a tick."""
    lines = list({line: None for line, _ in cells})
    names = [name for name in ORDER if any(name == column for _, column in cells)]
    figure, axes = plt.subplots(figsize=(7.5, 1 + 0.5 * len(lines)), layout="constrained")
    for number, name in enumerate(names):
        found = [(place, cells[line, name]) for place, line in enumerate(lines) if (line, name) in cells]
        axes.errorbar(
            [100 * row["top1_mean"] for _, row in found],
            [place + 0.16 * (number - (len(names) - 1) / 2) for place, _ in found],
            xerr=[100 * (row["top1_std"] or 0.0) for _, row in found],
            color=COLOURS[name],
            marker="o",
            linestyle="",
            capsize=2,
            label=name,
        )
    floors = {line: 100 * row["untrained_top1_mean"] for (line, _), row in cells.items()}
    for place, line in enumerate(lines):
        label = None if place else "untrained"
        axes.plot([floors[line]] * 2, [place - 0.4, place + 0.4], color="grey", linestyle="--", label=label)
    axes.set_yticks(range(len(lines)), lines)
    axes.invert_yaxis()
    seeds = max(len(row["seeds"]) for row in cells.values())
    axes.set_xlabel(f"linear top-1 (%), mean and sample standard deviation of {seeds} seeds")
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(picture, dpi=130)


def main(source: str, picture: str, pairs: list[str]) -> None:
    """Print the tables and the pairs; draw the picture."""
    rows = [row for row in json.loads(Path(source).read_text()) if not row["reference"]]
    cells = {(line_of(row, rows), column_of(row)): row for row in rows}
    assert len(cells) == len(rows), "two rows in one place"
    assert all(name in COLOURS for _, name in cells), "a strategy without a column"
    cells = dict(sorted(cells.items()))
    for text in (of_accuracy, of_difference, of_costs):
        show(cells, text)
    differences = [row for row in rows if row["difference"] is not None]
    print(f"{len(differences)} intervals against FedSSL, not corrected for their number")
    draw(cells, picture)
    by_words = {"/".join(key): row for key, row in cells.items()}
    for pair in pairs:
        one, other = pair.split(" - ")
        print(f"{pair}: {paired(by_words[one], by_words[other])}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
