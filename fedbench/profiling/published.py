"""Published tables beside our figures in the same convention. The paper's numbers are data, never results."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from fedbench.config import load_config, resolve_file
from fedbench.config.load import flat, merge, read_yaml
from fedbench.conventions import CONVENTIONS
from fedbench.errors import UserError, suggest
from fedbench.profiling.profile import Profile, profile
from fedbench.tables import bullets, markdown

UNITS: Mapping[str, tuple[str, int]] = {  # key -> title, digits after the point in the paper
    "gflops": ("GFLOPs", 0),
    "comm_gb": ("communication GB", 2),
    "flops_saving": ("FLOPs saved x", 1),
    "comm_saving": ("communication saved x", 1),
}


def folder() -> Path:
    """Where the tables are."""
    return Path(str(resources.files("fedbench.published")))


def table_names() -> list[str]:
    """All published tables."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def comparison(name: str) -> str:
    """A published table as text: the paper's figure, ours, the difference.

    Raises:
        UserError: there is no such table.
    """
    if name not in table_names():
        raise UserError(f"published table {name!r}: no such table; {suggest(name, table_names())}")
    table = read_yaml(folder() / f"{name}.yaml")
    base = read_yaml(resolve_file(table["preset"], "presets"))
    references = {row["ssl"]: _profile(base, {"strategy": "fedssl", "ssl": row["ssl"]}) for row in table["rows"]}
    rows = [
        _line(row, key, own, references[row["ssl"]], table["convention"])
        for row in table["rows"]
        for own in [_profile(base, row)]
        for key in UNITS
        if key in row
    ]
    rule = CONVENTIONS[table["convention"]]
    return "\n\n".join(
        [
            f"### {table['title']} ({table['source']}) beside fedbench",
            markdown(["strategy", "ssl", "figure", "paper", "ours", "difference", "agrees"], rows, left=3),
            bullets(
                f"Convention `{rule.name}`. FLOPs: {rule.flops}. Bytes: {rule.traffic}.",
                "Agrees: ours, rounded as the paper's figure is, is that figure.",
                *table["remarks"],
            ),
        ]
    )


def _profile(base: Mapping[str, Any], row: Mapping[str, Any]) -> Profile:
    """Ours of a row: its strategy and SSL method, and the settings `with` which it goes."""
    named = {"strategy": {"name": row["strategy"]}, "ssl": {"name": row["ssl"]}}
    return profile(load_config(base, merge(named, row.get("with", {}), drop_fields=False)), trace=False)


def _line(row: Mapping[str, Any], key: str, own: Profile, reference: Profile, rule: Any) -> Sequence[str]:
    title, digits = UNITS[key]
    value, paper = _ours(key, own, reference, rule), row[key]
    agrees = "yes" if round(value, digits) == paper else "no"
    shown = f"{paper:.{digits}f}"
    settings = " ".join(f"{key}={setting}" for key, setting in flat(row.get("with", {})).items())
    return [
        " ".join(filter(None, [row["strategy"], settings])),
        row["ssl"],
        title,
        shown,
        f"{value:.{digits + 2}f}",
        f"{value / paper - 1:+.2%}",
        agrees,
    ]


def _ours(key: str, own: Profile, reference: Profile, rule: Any) -> float:
    if key == "gflops":
        return own.paper_gflops
    if key == "comm_gb":
        return own.paper_comm_gb
    if key == "flops_saving":
        return reference.total("flops", rule) / own.total("flops", rule)
    return _traffic(reference, rule) / _traffic(own, rule)


def _traffic(one: Profile, rule: Any) -> float:
    return one.total("download_bytes", rule) + one.total("upload_bytes", rule)
