from pathlib import Path

import pytest

from fedbench.config import config_names, load_config, resolve_file
from fedbench.config.grid import Grid, cells, read_grid
from fedbench.config.load import read_yaml
from fedbench.errors import UserError
from fedbench.federation.experiment import check


def test_axes_are_multiplied_and_cells_added() -> None:
    grid = Grid(
        base={"federation": {"rounds": 8}},
        axes={"strategy": ["fedssl", "lw_fedssl"], "ssl.name": ["byol", "simclr"], "seed": [0, 1]},
        cells=[{"strategy": {"name": "lw_fedssl", "blocks_per_stage": 2}}],
    )
    configs = cells(grid, {})
    assert len(configs) == 2 * 2 * 2 + 1
    assert (configs[1].strategy["name"], configs[1].ssl.name, configs[1].seed) == ("fedssl", "byol", 1)
    assert configs[-1].strategy == {"name": "lw_fedssl", "blocks_per_stage": 2}
    assert {config.federation.rounds for config in configs} == {8}


def test_the_command_line_wins_and_equal_cells_run_once() -> None:
    grid = Grid(axes={"seed": [0, 1, 2]})
    configs = cells(grid, {"seed": 5})
    assert [config.seed for config in configs] == [5]


def test_a_grid_without_axes_is_one_cell() -> None:
    assert cells(Grid(base={"seed": 4}), {})[0].seed == 4


def test_a_misspelled_part_of_a_grid_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text("axis: {seed: [0]}\n")
    with pytest.raises(UserError, match=r"grid\.yaml is not a grid:\n.*axis: unknown key; did you mean 'axes'"):
        read_grid(path)


@pytest.mark.parametrize("name", config_names("grids"))
def test_every_shipped_grid_is_valid(name: str) -> None:
    for config in cells(read_grid(resolve_file(name, "grids")), {}):
        check(config)


@pytest.mark.parametrize("name", config_names("presets"))
def test_every_shipped_preset_is_valid(name: str) -> None:
    check(load_config(read_yaml(resolve_file(name, "presets"))))
