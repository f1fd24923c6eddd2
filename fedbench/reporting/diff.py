"""`diff`: two runs side by side: what was asked for, what ran it, what came out, and where they first part."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedbench.config.load import flat
from fedbench.errors import UserError
from fedbench.escaping import printable
from fedbench.tracking.run_directory import ENCODER, MANIFEST, SUMMARY, RunDirectory

CLOCKS = ("seconds", "client/cuda_")  # differ from run to run
VERSIONS = ("cell_hash", "data_hash", "sources", "device", "commit", "dirty", "libraries", "numerics", "processor")


def diff(one: Path, other: Path) -> str:
    """What differs, as text; in figures also what is equal.

    Raises:
        UserError: a folder holds no finished run.
    """
    runs = [_read(path) for path in (one, other)]
    manifests = [run.manifest() for run in runs]
    configs = [flat(manifest["config"]) for manifest in manifests]
    versions = [flat({key: manifest.get(key) for key in VERSIONS}) for manifest in manifests]
    figures = [_figures(run.summary()) for run in runs]
    parts = [
        _section("Configuration", _differing(*configs)),
        _section("Code and machine", _differing(*versions)),
        _section("Figures", {key: (figures[0].get(key), figures[1].get(key)) for key in figures[0] | figures[1]}),
        _first_round(*runs),
        f"Encoders: {'the same bits' if _bits(runs[0]) == _bits(runs[1]) else 'not the same bits'}.",
    ]
    return "\n\n".join(filter(None, parts))


def _read(path: Path) -> RunDirectory:
    missing = [name for name in (MANIFEST, SUMMARY, ENCODER) if not (path / name).is_file()]
    if missing:
        raise UserError(f"diff {path}: no {missing[0]} in it; allowed: the directory of a finished run")
    return RunDirectory(path)


def _figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracies and costs."""
    shown = ("probe/", "personal/", "untrained/", "client/", "server/", "total/")
    return {key: value for key, value in summary.items() if key.startswith(shown) and not key.startswith(CLOCKS)}


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = dict.fromkeys([*one, *other])
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def _section(title: str, pairs: Mapping[str, tuple[Any, Any]]) -> str:
    """A line for each key: both values, or `equal` and the one that both have."""
    if not pairs:
        return f"{title}: equal."
    width = max(map(len, pairs))
    lines = [printable(f"  {key:<{width}}  {_words(one, other)}") for key, (one, other) in pairs.items()]
    return "\n".join([f"{title}:", *lines])


def _words(one: Any, other: Any) -> str:
    if one == other:
        return f"{_short(one)}  equal"
    both_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other))
    ratio = f"  ({other / one:.4g}x)" if both_numbers and one else ""
    return f"{_short(one)} -> {_short(other)}{ratio}"


def _short(value: Any) -> str:
    """Hashes are cut: what tells two apart stands in front."""
    text = str(value)
    return text[:12] if len(text) in (40, 64) and text.isalnum() else text


def _first_round(one: RunDirectory, other: RunDirectory) -> str:
    """Where the records part, clocks aside, in what both of them know."""
    records = [[_timeless(line) for line in run.rounds()] for run in (one, other)]
    for first, second in zip(*records, strict=False):
        if keys := [key for key in first if key in second and first[key] != second[key]]:
            return printable(f"Rounds: the first that differs is {first['round']} ({', '.join(keys[:4])}).")
    if len(records[0]) != len(records[1]):
        return f"Rounds: {len(records[0])} and {len(records[1])}, equal as far as both go."
    return f"Rounds: {len(records[0])}, all equal but for the clock."


def _timeless(line: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if not key.startswith(CLOCKS)}


def _bits(run: RunDirectory) -> str:
    return run.encoder_digest()
