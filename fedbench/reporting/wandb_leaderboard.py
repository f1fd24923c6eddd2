"""The leaderboard in W&B: one run for each project and group, always the latest, with a table and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedbench.config import TrackingConfig, load_config
from fedbench.config.load import digest
from fedbench.errors import UserError
from fedbench.reporting.leaderboard import plain, render
from fedbench.reporting.pareto import plot
from fedbench.reporting.ranking import Row, by_table, leaderboard
from fedbench.reporting.wandb_report import save_report
from fedbench.tracking.runs import Run
from fedbench.tracking.wandb_mirror import Place, WandbMirror
from fedbench.tracking.wandb_server import warn

FOLDER = "leaderboard"  # below that of the results: where W&B's files go


def tracking_of(runs: Sequence[Run], overrides: Mapping[str, Any]) -> TrackingConfig:
    """Where the leaderboard of these runs belongs: into their project, and into their group if they share one.

    It goes online, unless `overrides` (a tree with the section `tracking`) say otherwise.

    Raises:
        UserError: if the runs are of several projects and none is named, or an override is not valid.
    """
    sections = [run.manifest["config"].get("tracking", {}) for run in runs]
    projects = sorted({str(section.get("project")) for section in sections})
    if len(projects) > 1 and "project" not in overrides.get("tracking", {}):
        raise UserError(f"--wandb: the runs are of projects {', '.join(projects)}; add tracking.project=NAME")
    groups = {section.get("group") for section in sections}
    shared: dict[str, Any] = {"wandb": "online", "group": groups.pop() if len(groups) == 1 else None}
    if len(projects) == 1:
        shared["project"] = projects[0]
    return load_config({"tracking": shared}, overrides).tracking


def mirror_leaderboard(runs: Sequence[Run], tracking: TrackingConfig, out: Path) -> None:
    """Write the leaderboard of these runs to W&B, in place of the one that was there; its files go below `out`."""
    rows = leaderboard(runs)
    name = FOLDER if tracking.group is None else f"{FOLDER} {tracking.group}"
    cells = sorted({run.path.name for run in runs if run.path})
    run_id = digest([FOLDER, tracking.group])
    with (
        TemporaryDirectory() as pictures,
        WandbMirror(tracking, name, {"runs": cells}, out / FOLDER, run_id, "leaderboard") as mirror,
    ):
        mirror.show(lambda: _media(rows, Path(pictures)))
        place = mirror.place
        mirror.finish({})
    if place:
        warn(f"the leaderboard is at {place.url}")
        _save_report(place, name, rows, tracking.group)


def _save_report(place: Place, name: str, rows: Sequence[Row], group: str | None) -> None:
    """A saved report too, where wandb-workspaces is installed; what goes wrong in it is told and nothing more."""
    if find_spec("wandb_workspaces") is None:
        warn("no saved W&B report; for one: pip install wandb-workspaces")
        return
    protocols = list(dict.fromkeys(row.protocol for row in rows))
    try:
        save_report(place.entity, place.project, f"fedbench {name}", render(rows), group, protocols)
    except Exception as error:
        warn(f"no saved W&B report: {type(error).__name__}: {error}")


def _media(rows: Sequence[Row], folder: Path) -> dict[str, Any]:
    """The rows in base units, and a picture for each table of comparable ones."""
    import wandb

    titles = [table[0].title for table in by_table(rows)]
    named = [replace(row, runs=tuple(Path(path).name for path in row.runs)) for row in rows]  # no path goes there
    data = [[plain(value) for value in astuple(row)] for row in named]
    pictures = plot(rows, folder / "pareto.png")
    return {
        "leaderboard": wandb.Table(columns=[field.name for field in fields(Row)], data=data),
        "pareto": [wandb.Image(str(file), caption=title) for file, title in zip(pictures, titles, strict=True)],
    }
