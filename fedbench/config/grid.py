"""Many cells from one YAML file: a base configuration, axes (all combinations), and cells of their own.

base: {encoder: {width: 48}, federation: {rounds: 24}}
axes:
  strategy: [fedssl, prog_fedssl, lw_fedssl]
  seed: [0, 1, 2]
cells:
  - {strategy: fedssl, federation: {local_epochs: 1}}
exclude:
  - {strategy: prog_fedssl, seed: 2}
tune:                                      # how `tune` searches; `run` takes no notice of it
  trials: 16
  space: {optimizer.base_lr: {low: 1.0e-3, high: 1.0e-1, log: true}}
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial, reduce
from itertools import accumulate, product
from math import prod
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedbench.config import Config, load_config
from fedbench.config.load import explanations, flat, merge, nest
from fedbench.config.plain_yaml import read_yaml
from fedbench.config.schema import Seed
from fedbench.errors import UserError, shorten, shown, suggest

Tree = dict[str, Any]
Axes = Mapping[str, Sequence[Any]]
Values = Annotated[list[Any], Field(min_length=1)]
TOGETHER = "settings"  # the axis whose values set several keys at once
MAX_CELLS = 100_000  # of a grid, or trials of its tuning; of more, several files


class Range(BaseModel):
    """Where a number is searched: evenly, or evenly in its logarithm; whole numbers where both ends are."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"low={self.low}, high={self.high}, log={self.log}; allowed: low below high, above 0 with log"
            )
        return self


class Search(BaseModel):
    """How `tune` searches: so many settings of a space, for every strategy the very same ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trials: Annotated[int, Field(ge=1, le=MAX_CELLS)] = 16
    space: Annotated[dict[str, Range | Values], Field(min_length=1, max_length=1_000)]
    """Key -> range, or list of values."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (1000,)
    """Of the trials; no seed of the grid."""
    sampler_seed: Seed = 0


class Grid(BaseModel):
    """A grid file: every cell is `base`, one value of each axis (dotted keys), and the command line on top.

    The values of the axis `settings` are trees of several keys, for what belongs together. A
    cell in which every key of an exclusion has the value given there is left out.
    """

    model_config = ConfigDict(extra="forbid")

    base: Tree = {}
    axes: dict[str, list[Any]] = {}
    cells: list[Tree] = []
    exclude: Annotated[list[Tree], Field(max_length=1_000)] = []
    tune: Search | None = None


def read_grid(path: Path) -> Grid:
    """The grid of a YAML file.

    Raises:
        UserError: naming the file, the key and what is allowed.
    """
    try:
        return Grid.model_validate(read_yaml(path))
    except ValidationError as error:
        raise UserError("\n".join([f"{path} is not a grid:", *explanations(Grid, error)])) from error


def cells(grid: Grid, overrides: Tree, sweeps: Axes | None = None) -> list[Config]:
    """Every cell, validated; equal ones once. All are checked before the first one runs.

    Args:
        sweeps: axes of the command line, on top of every cell.

    Raises:
        UserError: naming the axis or the exclusion; there are too many cells, or none is left.
    """
    _check_axes(grid, sweeps or {})
    trees = [merge(grid.base, axes) for axes in _combinations(grid.axes)] if grid.axes else []
    trees += [merge(grid.base, cell) for cell in grid.cells]
    swept = list(_combinations(sweeps or {}))
    asked = [merge(sweep, overrides, drop_fields=False) for sweep in swept]  # in whatever order it was given
    configs = [load_config(tree, words) for tree in trees or [grid.base] for words in asked]
    different = list({config.model_dump_json(): config for config in configs}.values())
    return _left(different, [reduce(merge, map(nest, one, one.values()), {}) for one in grid.exclude])


def _check_axes(grid: Grid, sweeps: Axes) -> None:
    """Before a cell is built. UserError: an axis has no value, or one that is none; there are too many cells."""
    for key, values in grid.axes.items():
        if not values:
            raise UserError(f"axes.{shorten(key)} is empty; allowed: one value or more")
    for value in grid.axes.get(TOGETHER, ()):
        if not isinstance(value, Mapping):
            raise UserError(f"axes.{TOGETHER}: {shown(value)}; allowed: mappings of keys to values")
    own = prod(map(len, grid.axes.values())) if grid.axes else 0
    check_number(max(1, own + len(grid.cells)) * prod(map(len, sweeps.values())), "cells of the grid")


def check_number(number: int, what: str) -> None:
    """UserError: more than `MAX_CELLS`."""
    if number > MAX_CELLS:
        raise UserError(f"{shown(number)} {what}; allowed: {MAX_CELLS:,}, or several files of as many")


def _left(configs: Sequence[Config], exclude: Sequence[Tree]) -> list[Config]:
    trees = [config.model_dump(mode="json") for config in configs]
    known = {section for tree in trees for key in flat(tree) for section in _sections(key)} if exclude else set()
    for key in {key: None for one in exclude for key in flat(one)}:
        if key not in known:
            raise UserError(f"exclude: no cell has a key {shorten(key)}; {_nearest(key, known)}")
    for one in exclude:
        if not any(_is(tree, one) for tree in trees):
            print(f"fedbench: exclude: no cell has {shown(one)}, so it leaves nothing out", file=sys.stderr)
    left = [
        config for config, tree in zip(configs, trees, strict=True) if not any(_is(tree, one) for one in exclude)
    ]
    if not left:
        raise UserError("exclude: leaves no cell of the grid; allowed: to leave one or more")
    return left


def _nearest(key: str, known: set[str]) -> str:
    """Of hundreds of keys those of the same section, or else the sections."""
    section, _, _ = key.partition(".")
    within = sorted(one for one in known if one.startswith(f"{section}."))
    return suggest(key, within or sorted(one for one in known if "." not in one))


def _sections(key: str) -> Iterable[str]:
    """`a.b.c` -> `a`, `a.b`, `a.b.c`."""
    return accumulate(key.split("."), "{}.{}".format)


def _is(value: Any, wanted: Any) -> bool:
    """Whether the configuration agrees with an exclusion; a section's preset, or else its name, stands for it."""
    if isinstance(value, Mapping) and isinstance(wanted, str):
        return bool(wanted == value.get("preset", value.get("name")))
    if isinstance(value, Mapping) and isinstance(wanted, Mapping):
        return all(key in value and _is(value[key], one) for key, one in wanted.items())
    return bool(value == wanted)


def differences(configs: Sequence[Config]) -> list[str]:
    """Of each cell, the settings in which cells differ and that its name does not tell: `federation.rounds=18`."""
    trees = [flat(config.model_dump(mode="json")) for config in configs]
    told = ("strategy.", "ssl.name", "data.name", "seed", "tuning.")
    keys = dict.fromkeys(key for tree in trees for key in tree if not key.startswith(told))
    varied = [key for key in keys if len({repr(tree.get(key)) for tree in trees}) > 1]
    return [" ".join(f"{key}={tree[key]}" for key in varied if tree.get(key) is not None) for tree in trees]


def shard(configs: Sequence[Config], part: tuple[int, int]) -> list[Config]:
    """Every n-th cell from the i-th on, of `(i, n)`: the parts of a cluster's array job."""
    index, count = part
    return list(configs[index - 1 :: count])


def _combinations(axes: Axes) -> Iterable[Tree]:
    """One tree per element of the cartesian product; keys are dotted."""
    for values in product(*axes.values()):
        trees = [value if key == TOGETHER else nest(key, value) for key, value in zip(axes, values, strict=True)]
        yield reduce(partial(merge, drop_fields=False), trees, {})
