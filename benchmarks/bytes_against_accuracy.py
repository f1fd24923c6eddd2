"""Bytes against accuracy, of strategies under codecs: a table, a picture, and intervals of pairs.

    python benchmarks/bytes_against_accuracy.py LEADERBOARD.json PICTURE.png [ROW - ROW ...]

LEADERBOARD.json is that of the grid `codecs`. A row is named by its strategy and its codec, as in the table:
`"fedssl 4 bit - lw_fedssl@v4"` asks for the paired difference of two, with its 95 % t interval over their seeds.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from fedbench.reporting.paired import paired_difference

MB = 1e6
COLOURS = {"fedssl": "#0072b2", "prog_fedssl": "#e69f00", "lw_fedssl@v4": "#56b4e9", "lw_fedssl@v3": "#d55e00"}
MARKERS = {"": "o", "8 bit": "s", "4 bit": "D", "top 10 %": "^", "top 1 %": "v", "rank 2": "X"}


def name_of(row: dict[str, Any]) -> tuple[str, str]:
    """Strategy and codec."""
    strategy, text = re.split(r"\(|$", row["strategy"], maxsplit=1)
    if "quantise" in text:
        codec = "4 bit" if "quantise.upload=4" in text else "8 bit"
    elif "top_k" in text:
        codec = "top 1 %" if "top_k.upload=0.01" in text else "top 10 %"
    else:
        codec = "rank 2" if "low_rank" in text else ""
    return strategy, codec


def paired(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Mean difference in points of top-1, and its 95 % interval."""
    first, second = (dict(zip(row["seeds"], row["top1_by_seed"], strict=True)) for row in (one, other))
    assert first.keys() == second.keys()
    found = paired_difference(first, second)
    assert found is not None, "one seed has no interval"
    return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def main(source: str, picture: str, pairs: list[str]) -> None:
    """Print the table and the pairs; draw the picture."""
    rows = {name_of(row): row for row in json.loads(Path(source).read_text())}
    megabytes = {name: (row["download_bytes"] + row["upload_bytes"]) / MB for name, row in rows.items()}
    print("| | " + " | ".join(codec or "as it is" for codec in MARKERS) + " |")
    print("|---" * (len(MARKERS) + 1) + "|")
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for strategy, colour in COLOURS.items():
        cells = []
        for codec, marker in MARKERS.items():
            row, place = rows[strategy, codec], megabytes[strategy, codec]
            mean, spread = 100 * row["top1_mean"], 100 * (row["top1_std"] or 0.0)
            cells.append(f"{mean:.1f} ± {spread:.1f}, {place:.2f} MB" if spread else f"{mean:.1f}, {place:.2f} MB")
            axes.errorbar(place, mean, spread or None, color=colour, marker=marker, capsize=2, linestyle="")
        print(f"| {strategy} | " + " | ".join(cells) + " |")
        axes.plot([], [], color=colour, linewidth=4, label=strategy)
    for codec, marker in MARKERS.items():
        axes.plot([], [], color="grey", marker=marker, linestyle="", label=codec or "as it is")
    floor = 100 * next(iter(rows.values()))["untrained_top1_mean"]
    axes.axhline(floor, color="grey", linestyle="--", label="untrained")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xscale="log", xlabel="download and upload of a client (MB, log)", ylabel="linear top-1 (%)")
    ticks = [one for one in (0.5, 0.7, 1, 2, 4, 8, 16, 32, 64) if min(megabytes.values()) / 2 < one]
    axes.set_xticks(ticks := [one for one in ticks if one < 2 * max(megabytes.values())], list(map(str, ticks)))
    axes.minorticks_off()
    seeds = len(next(iter(rows.values()))["seeds"])
    said = f"mean and sample standard deviation of {seeds} seeds" if seeds > 1 else "one seed, which ranks nothing"
    axes.set_title(said, fontsize=10)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(picture, dpi=130)
    by_words = {" ".join(name).strip(): row for name, row in rows.items()}
    for pair in pairs:
        one, other = pair.split(" - ")
        print(f"{pair}: {paired(by_words[one], by_words[other])}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
