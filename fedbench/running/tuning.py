"""`tune`: every strategy of a grid gets the same trials, on validation images; the winners become a grid.

The rules are those of external tuning in MLCommons AlgoPerf (Dahl et al. 2023, arXiv:2306.07179): a search space
that is fixed beforehand, quasi-random points of it, the same number for everybody, and the best by a score on
validation data. Here the points themselves are the same: nobody is luckier in the draw.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from scipy.stats import qmc

import fedbench
from fedbench.config import Config, load_config
from fedbench.config.grid import TOGETHER, Grid, Range, Search, cells, check_number
from fedbench.config.load import Tree, flat, merge, nest
from fedbench.config.schema import TuningRecord
from fedbench.errors import UserError
from fedbench.federation.naming import strategy_label
from fedbench.files import write_atomically
from fedbench.running.cells import prepare_cells, run_cells
from fedbench.running.forecast import forecast
from fedbench.tables import bullets, markdown
from fedbench.tracking.manifest import git_state
from fedbench.tracking.run_directory import ERROR, SUMMARY, RunDirectory
from fedbench.tracking.runs import transforms_words

TUNED, TRIALS = "tuned.yaml", "trials.json"
LOST = -1.0  # the score of a trial that failed or diverged: below every accuracy


@dataclass(frozen=True)
class Contestant:
    """A cell of the grid without its seed, and what is tried for it: a configuration per trial and seed."""

    tree: Tree
    points: list[Tree]  # per trial, dotted keys; keys that this strategy does not have are left out
    trials: list[list[Config]]

    @property
    def name(self) -> str:
        """The strategy, and the SSL method."""
        config = load_config(self.tree)
        return f"{strategy_label(config)} {config.ssl.name}"


def labels(found: Sequence[Contestant]) -> list[str]:
    """Their names, with the keys in which those of one name differ."""
    names, settings = [one.name for one in found], [flat(one.tree) for one in found]
    texts = []
    for name, own in zip(names, settings, strict=True):
        twins = [other for twin, other in zip(names, settings, strict=True) if twin == name]
        keys = sorted({key for twin in twins for key in twin})
        told = [key for key in keys if key in own and any(twin.get(key) != own[key] for twin in twins)]
        values = {key: transforms_words(own[key]) if key == "encoder.transforms" else own[key] for key in told}
        texts.append(" ".join([name, *(f"{key}={value}" for key, value in values.items())]))
    return texts


def sample(search: Search) -> list[Tree]:
    """The trials' settings, dotted key -> value: points of a scrambled Halton sequence, scaled to the space."""
    halton = qmc.Halton(len(search.space), rng=search.sampler_seed)
    return [
        {key: _scale(share, where) for (key, where), share in zip(search.space.items(), point, strict=True)}
        for point in halton.random(search.trials).tolist()
    ]


def _scale(share: float, where: Range | Sequence[Any]) -> Any:
    """The value at `share` (in [0, 1)) of a range or of a list of values."""
    if not isinstance(where, Range):
        return where[int(share * len(where))]
    if isinstance(where.low, int) and isinstance(where.high, int):
        low, high = where.low, where.high + 1
        return int(exp(log(low) + share * log(high / low))) if where.log else low + int(share * (high - low))
    if where.log:
        return float(f"{exp(log(where.low) + share * log(where.high / where.low)):.4g}")
    return float(f"{where.low + share * (where.high - where.low):.4g}")


def contestants(grid: Grid, overrides: Tree) -> list[Contestant]:
    """What is tuned: each cell of the grid once, whatever seeds it is to be run with later.

    Raises:
        UserError: there is nothing to search, a key is not to be tuned, or a trial has a seed of the grid.
    """
    if grid.tune is None:
        raise UserError("the grid has no `tune`; allowed: tune: {trials: 16, space: {KEY: {low: ..., high: ...}}}")
    _check(grid, grid.tune, overrides)
    configs = cells(grid, overrides)
    check_number(len(configs) * grid.tune.trials * len(grid.tune.seeds), "trials of the grid's cells")
    points = sample(grid.tune)
    found: dict[str, Contestant] = {}
    for config in configs:
        tree = config.model_dump(mode="json", exclude={"seed", "tuning"}, exclude_defaults=True)
        tree["strategy"] = dict(config.strategy)
        own = [{key: value for key, value in point.items() if _has(tree, key)} for point in points]
        trials = [[_trial(tree, point, seed) for seed in grid.tune.seeds] for point in own]
        found.setdefault(json.dumps(tree, sort_keys=True), Contestant(tree, own, trials))
    return list(found.values())


def _check(grid: Grid, search: Search, overrides: Tree) -> None:
    fixed = [key for key in search.space if key == "seed" or key.startswith(("data.", "evaluation.", "tuning."))]
    if fixed:
        raise UserError(f"tune.space.{fixed[0]}: not to be tuned; allowed: keys of how a client trains")
    own = {config.seed for config in cells(grid, overrides)}
    if own & set(search.seeds):
        raise UserError(
            f"tune.seeds={list(search.seeds)} has seeds of the grid {sorted(own)}; allowed: others, because what "
            "is reported must be drawn anew"
        )


def _has(tree: Tree, key: str) -> bool:
    """Whether a strategy has the key: one that another strategy alone knows is not its to tune."""
    return not key.startswith("strategy.") or key in flat(tree)


def _trial(tree: Tree, point: Tree, seed: int) -> Config:
    changes = [nest(key, value) for key, value in point.items()]
    held_out = {"seed": seed, "evaluation": {"split": "validation"}}
    return load_config(_merged(tree, *changes, held_out))


def _merged(*trees: Tree) -> Tree:
    return reduce(partial(merge, drop_fields=False), trees, {})


def tune(grid: Grid, name: str, overrides: Tree, out: Path, jobs: int) -> str:
    """Run what is not finished, write `tuned.yaml` and `trials.json`; returns the winners as a table."""
    found = contestants(grid, overrides)
    assert grid.tune is not None, "contestants has seen it"
    run_cells([config for one in found for trial in one.trials for config in trial], out, jobs)
    _check_finished([config for one in found for trial in one.trials for config in trial], out)
    scores = [[_score(trial, out) for trial in one.trials] for one in found]
    for label, row in zip(labels(found), scores, strict=True):
        if max(row) == LOST:
            raise UserError(f"{label}: no trial has a score; see error.txt in the run directories of {out}")
    winners = [row.index(max(row)) for row in scores]
    chosen = [
        _tuned(name, one, grid.tune, winner, row) for one, winner, row in zip(found, winners, scores, strict=True)
    ]
    seeds = sorted({config.seed for config in cells(grid, overrides)})
    write_atomically(out / TUNED, _grid_text(name, grid.tune, seeds, chosen).encode())
    write_atomically(out / TRIALS, (json.dumps(_trials(found, scores), indent=2) + "\n").encode())
    return _table(grid.tune, found, scores, winners, out)


def predict(grid: Grid, overrides: Tree, out: Path) -> str:
    """The trials and what they will cost; nothing is trained."""
    return forecast([c for one in contestants(grid, overrides) for trial in one.trials for c in trial], out)


def _check_finished(trials: Sequence[Config], out: Path) -> None:
    """A trial that another process is running counts for nobody yet: to choose without it would be unfair."""
    open_ = [
        task.name
        for task in prepare_cells(trials, out)
        if not any((task.directory.path / name).is_file() for name in (SUMMARY, ERROR))
    ]
    if open_:
        raise UserError(
            f"{len(open_)} trial(s) have no result yet, {open_[0]} is one: another process runs them; the same "
            "command chooses when they are finished"
        )


def _score(trial: Sequence[Config], out: Path) -> float:
    """Mean top-1 over the seeds under the first protocol; `LOST` if a seed diverged or has no result."""
    top1 = []
    for task in prepare_cells(trial, out):
        if not (task.directory.path / SUMMARY).is_file():
            return LOST
        summary = RunDirectory(task.directory.path).summary()
        top1.append(LOST if summary["diverged"] else summary[f"probe/{_protocol(trial[0])}_top1"])
    return LOST if LOST in top1 else fmean(top1)


def _protocol(config: Config) -> Any:
    return config.evaluation.protocols[0]


def _tuned(name: str, one: Contestant, search: Search, winner: int, row: Sequence[float]) -> Tree:
    """The winner's cell, with the record of how it was found."""
    record = TuningRecord(
        grid=name,
        trials=search.trials,
        space={key: _words(where) for key, where in search.space.items()},
        sampler=f"the same points for every strategy: scrambled Halton sequence, seed {search.sampler_seed}",
        split="validation",
        protocol=_protocol(one.trials[0][0]),
        seeds=search.seeds,
        score=row[winner],
        commit=git_state(Path(fedbench.__file__).parents[1])["commit"],
    )
    changes = [nest(key, value) for key, value in one.points[winner].items()]
    return _merged(one.tree, *changes, {"tuning": record.model_dump(mode="json")})


def _words(where: Range | Sequence[Any]) -> str:
    if not isinstance(where, Range):
        return f"one of {list(where)}"
    return f"{where.low:g} to {where.high:g}{', evenly in the logarithm' if where.log else ''}"


def _grid_text(name: str, search: Search, seeds: Sequence[int], chosen: Sequence[Tree]) -> str:
    """The winners as a grid file: what all have in common, and axes of their own settings and of the seeds."""
    head = (
        f"# Written by `tune {name}`: the best of {search.trials} trials of each cell, the same for all, scored\n"
        "# on validation images. `run --grid` with this file reports on test images, with seeds no trial had.\n"
    )
    base = {key: value for key, value in chosen[0].items() if all(one.get(key) == value for one in chosen)}
    own = [{key: value for key, value in one.items() if key not in base} for one in chosen]
    grid = {"base": base, "axes": {"seed": list(seeds), TOGETHER: own}}
    plain = json.loads(json.dumps(grid))  # without YAML aliases
    return head + str(yaml.safe_dump(plain, sort_keys=False, width=110, default_flow_style=None))


def _trials(found: Sequence[Contestant], scores: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Every trial with its settings and score; null for one that was lost."""
    return [
        {"cell": label, "trial": number, **point, "score": None if score == LOST else score}
        for label, one, row in zip(labels(found), found, scores, strict=True)
        for number, (point, score) in enumerate(zip(one.points, row, strict=True))
    ]


def _table(
    search: Search,
    found: Sequence[Contestant],
    scores: Sequence[Sequence[float]],
    winners: Sequence[int],
    out: Path,
) -> str:
    rows = [
        [
            label,
            *(str(one.points[winner].get(key, "-")) for key in search.space),
            f"{100 * row[winner]:.1f}",
            f"{100 * sorted(row)[len(row) // 2]:.1f}",
            str(row.count(LOST)),
        ]
        for label, one, row, winner in zip(labels(found), found, scores, winners, strict=True)
    ]
    notes = bullets(
        f"{search.trials} trials each, the same settings for all; top-1 on validation images, mean over the seeds "
        f"{', '.join(map(str, search.seeds))}. Lost: diverged or failed. `-`: this cell has no such key.",
        f"`{out / TUNED}` holds the winners: `run --grid {out / TUNED}` reports them on the test images. "
        f"`{out / TRIALS}` has every trial.",
    )
    return f"{markdown(['cell', *search.space, 'best %', 'median %', 'lost'], rows)}\n\n{notes}"
