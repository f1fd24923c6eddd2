"""A saved W&B report: the leaderboard's text and picture, and the runs' curves and costs, live."""

from collections.abc import Sequence
from typing import Any

from fedbench.reporting.pareto import PANELS
from fedbench.tracking.wandb_mirror import SUMS


def save_report(
    entity: str, project: str, title: str, text: str, group: str | None, protocols: Sequence[str]
) -> None:
    """Save it under `title`, in place of one that bears it. wandb says where; needs wandb-workspaces and a login.

    `text` is Markdown; `group` limits the runs that are shown to those of a group. Accuracy is drawn for
    each of the protocols.
    """
    import wandb
    from wandb_workspaces.reports import v2 as saved

    known = wandb.Api().reports(f"{entity}/{project}")
    picture = saved.MediaBrowser(media_keys=["pareto"], num_columns=1, layout=saved.Layout(w=24, h=10))
    keys = [panel.field.replace("total_", "total/") for panel in PANELS]
    costs = [
        saved.ScatterPlot(x=f"run/{key if '/' in key else f'client/{key}'}", y=f"run/probe/{protocol}_top1")
        for protocol in protocols
        for key in keys
    ]
    curves = [saved.LinePlot(x="Step", y=["train/loss"])]
    curves += [saved.LinePlot(x=x, y=[f"probe/{protocol}_top1"]) for protocol in protocols for x in SUMS]
    report = saved.Report(project, entity, title, "Written by fedbench report --wandb.")
    report.id = next((old.id for old in known if old.display_name == title), "")
    report.blocks = [
        saved.MarkdownBlock(text),
        saved.PanelGrid([_runs(entity, project, "leaderboard", group)], panels=[picture]),
        saved.PanelGrid([_runs(entity, project, "cell", group)], panels=[*curves, *costs]),
    ]
    report.save()


def _runs(entity: str, project: str, kind: str, group: str | None) -> Any:
    """The project's runs of a kind: of cells, or of the leaderboard."""
    from wandb_workspaces.reports import v2 as saved

    in_group = "" if group is None else f" and Group == {group!r}"
    return saved.Runset(entity, project, kind, filters=f"JobType == {kind!r}{in_group}")
