"""`reproduce`: a row of committed results is run again, and compared figure by figure."""

from collections.abc import Mapping
from pathlib import Path
from statistics import stdev
from typing import Any, NamedTuple

from fedbench.config import Config, load_config
from fedbench.config.load import flat
from fedbench.errors import UserError
from fedbench.escaping import in_markdown
from fedbench.federation.experiment import prepare
from fedbench.reporting.results import COSTS, Tree, entry, read_results
from fedbench.running.cell import cell_name, run_cell
from fedbench.tables import bullets, markdown
from fedbench.tracking.runs import HOW, gather

ACCURACIES = ("top1", "untrained_top1")
WITHIN = 2.0  # standard deviations over the committed seeds, between kinds of kernels
MAY_DIFFER = tuple(key for key in (*HOW, "data.download", "evaluation.data.path") if key != "accelerator")


class Line(NamedTuple):
    """A figure as it was committed and as it is now, whether that is right, and why in words."""

    figure: str
    committed: Any
    now: Any
    right: bool
    verdict: str


def reproduce(file: Path, row: str, seed: int | None, out: Path, overrides: Mapping[str, Any]) -> tuple[str, bool]:
    """Run a committed row again in `out`.

    With the kernels, torch and thread number of then, all figures and the trained weights must be the same bits.
    With others, costs must be equal, and an accuracy within `WITHIN` standard deviations of the committed seeds.

    Args:
        row: its number in the file, from 1, or its name.
        seed: of the row's seeds; None: the first.
        overrides: keys that no result depends on, such as where the data are.

    Returns: the comparison as text, and whether it is right.

    Raises:
        UserError: there is no such row or seed, a key would make it another cell, or the data are others.
    """
    asked = _row(read_results(file), row, file)
    committed = _run(asked, seed)
    config = _config(asked, committed, overrides)
    now = _run_again(config, asked["protocol"], committed, out)
    lines = compare(committed, now, asked["runs"])
    return _render(f"{asked['name']}, seed {committed['seed']}", committed, now, lines), all(
        x.right for x in lines
    )


def _row(rows: list[Tree], wanted: str, file: Path) -> Tree:
    names = [f"{number} or {one['name']!r}" for number, one in enumerate(rows, 1)]
    found = [one for number, one in enumerate(rows, 1) if wanted in (str(number), one["name"])]
    if len(found) != 1:
        why = "no row" if not found else "several rows"
        raise UserError(f"--row {wanted}: {why} of {file}; allowed: {', '.join(names)}")
    return found[0]


def _run(row: Tree, seed: int | None) -> Tree:
    seeds = {run["seed"]: run for run in row["runs"]}
    if seed is not None and seed not in seeds:
        raise UserError(f"--seed {seed}: not in row {row['name']!r}; allowed: {', '.join(map(str, seeds))}")
    return seeds[seed] if seed is not None else row["runs"][0]


def _config(row: Tree, committed: Tree, overrides: Mapping[str, Any]) -> Config:
    refused = [key for key in flat(overrides) if not key.startswith(MAY_DIFFER)]
    if refused:
        raise UserError(f"{refused[0]} would make it another cell; allowed: {', '.join(MAY_DIFFER)}")
    same = {"seed": committed["seed"], "accelerator": committed["device"], "tracking": {"wandb": "disabled"}}
    return load_config(row["config"], same, overrides)


def _run_again(config: Config, protocol: str, committed: Tree, out: Path) -> Tree:
    experiment = prepare(config)
    if experiment.data_hash != committed["data_hash"]:
        raise UserError(
            f"the data of the committed run have the hash {committed['data_hash'][:12]}, these have "
            f"{experiment.data_hash[:12]}; allowed: the same images (data.path=PATH says where they are)"
        )
    outcome = run_cell(experiment, out)
    if outcome.state not in ("finished", "diverged"):
        raise UserError(f"{out / cell_name(experiment)} {outcome.words}; allowed: another --out")
    runs, _ = gather([out / cell_name(experiment)])
    return next(entry(run) for run in runs if run.evaluation.own and run.evaluation.protocol == protocol)


def same_bits_expected(committed: Tree, now: Tree) -> bool:
    """Whether both were computed by the same kernels; a GPU's do not promise the same bits twice."""
    alike = all(committed[key] == now[key] for key in ("kernels", "torch", "device"))
    return alike and now["device"] == "cpu" and "unknown" not in now["kernels"]


def compare(committed: Tree, now: Tree, row: list[Tree]) -> list[Line]:
    """A line for each figure.

    Args:
        row: the committed runs of all seeds.
    """
    then, again = committed["figures"], now["figures"]
    exact = same_bits_expected(committed, now)
    lines = [
        _exact(key, then[key], again[key])
        if exact
        else _near(key, then[key], again[key], [run["figures"][key] for run in row])
        for key in ACCURACIES
    ]
    same_meter = committed["memory_source"] == now["memory_source"] and now["device"] == "cpu"
    costs = [cost for cost in COSTS if same_meter or not cost.endswith("peak_memory_bytes")]
    lines += [_exact(cost, then[cost], again[cost]) for cost in costs]
    if exact:
        lines.append(_exact("encoder_sha256", committed["encoder_sha256"][:12], now["encoder_sha256"][:12]))
    return lines


def _exact(figure: str, committed: Any, now: Any) -> Line:
    return Line(figure, committed, now, committed == now, "equal" if committed == now else "NOT EQUAL")


def _near(figure: str, committed: float, now: float, seeds: list[float]) -> Line:
    """Under other kernels: training takes another path from the first rounding on, as with another seed."""
    if committed == now:
        return Line(figure, committed, now, True, "equal")
    difference = now - committed
    if len(seeds) < 2:
        return Line(
            figure, committed, now, True, f"{100 * difference:+.2f} points; one seed has no spread to judge by"
        )
    limit = WITHIN * stdev(seeds)
    right = abs(difference) <= limit
    words = "within" if right else "OUTSIDE"
    return Line(figure, committed, now, right, f"{100 * difference:+.2f} points, {words} {100 * limit:.2f}")


def _render(title: str, committed: Tree, now: Tree, lines: list[Line]) -> str:
    rows = [[line.figure, in_markdown(str(line.committed)), str(line.now), line.verdict] for line in lines]
    kernels = f"{committed['kernels']} with torch {committed['torch']}"
    others = f"{now['kernels']} with torch {now['torch']}"
    if same_bits_expected(committed, now):
        expected = f"The same kernels, {kernels}: every bit must be equal."
    else:
        expected = (
            f"Other kernels, {kernels} on {committed['accelerator'] or 'a CPU'} then, {others} on "
            f"{now['accelerator'] or 'a CPU'} now, or a GPU: costs must be equal, and an accuracy within "
            f"{WITHIN:g} standard deviations of the committed seeds."
        )
    notes = bullets(in_markdown(expected), in_markdown(f"Code: {committed['commit']} then, {now['commit']} now."))
    result = "REPRODUCED" if all(line.right for line in lines) else "NOT REPRODUCED"
    return (
        f"### {in_markdown(title)}\n\n{markdown(['figure', 'committed', 'now', ''], rows)}\n\n{notes}\n\n{result}"
    )
