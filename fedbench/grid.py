"""Many cells from one YAML file: a base configuration, axes (all combinations), and cells of their own.

base: {encoder: {width: 48}, federation: {rounds: 24}}
axes:
  strategy: [fedssl, prog_fedssl, lw_fedssl]
  seed: [0, 1, 2]
cells:
  - {strategy: fedssl, federation: {local_epochs: 1}}
"""

from collections.abc import Iterable, Mapping
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from fedbench.config import Config, load_config
from fedbench.config.load import explain, merge, nest, read_yaml
from fedbench.errors import UserError

Tree = dict[str, Any]


class Grid(BaseModel):
    """A grid file: every cell is `base`, one value of each axis (dotted keys), and the command line on top."""

    model_config = ConfigDict(extra="forbid")

    base: Tree = {}
    axes: dict[str, list[Any]] = {}
    cells: list[Tree] = []


def read_grid(path: Path) -> Grid:
    """The grid of a YAML file.

    Raises:
        UserError: naming the file, the key and what is allowed.
    """
    try:
        return Grid.model_validate(read_yaml(path))
    except ValidationError as error:
        lines = [explain(Grid, details) for details in error.errors()]
        raise UserError("\n".join([f"{path} is not a grid:", *lines])) from error


def cells(grid: Grid, overrides: Mapping[str, Any]) -> list[Config]:
    """Every cell, validated; equal ones once. All are checked before the first one runs."""
    empty = [key for key, values in grid.axes.items() if not values]
    if empty:
        raise UserError(f"axes.{empty[0]} is empty; allowed: one value or more")
    trees = [merge(grid.base, axes) for axes in _combinations(grid.axes)] if grid.axes else []
    trees += [merge(grid.base, cell) for cell in grid.cells]
    configs = [load_config(tree, overrides) for tree in trees or [grid.base]]
    return list({config.model_dump_json(): config for config in configs}.values())


def _combinations(axes: Mapping[str, list[Any]]) -> Iterable[Tree]:
    """One tree per element of the cartesian product; keys are dotted."""
    for values in product(*axes.values()):
        yield reduce(merge, map(nest, axes, values), {})
