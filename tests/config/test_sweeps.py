"""Several values on the command line, exclusions and shards."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fedbench.cli import main, parse, selected_cells
from fedbench.config import read_words
from fedbench.config.grid import Grid, cells, shard
from fedbench.errors import UserError


def found(grid: dict[str, Any], *words: str) -> list[tuple[str, str, int]]:
    asked = read_words(words)
    configs = cells(Grid.model_validate(grid), asked.overrides, asked.sweeps)
    return [(one.strategy.get("preset", one.strategy["name"]), one.ssl.name, one.seed) for one in configs]


def test_several_values_on_the_command_line_are_axes_on_top_of_every_cell() -> None:
    grid = {"axes": {"strategy": ["fedssl", "prog_fedssl"]}}
    assert [seed for _, _, seed in found(grid, "seed=3,4")] == [3, 4, 3, 4]
    assert found(grid, "strategy=lw_fedssl@v3,lw_fedssl@v4", "ssl.name=byol,simclr") == [
        ("lw_fedssl@v3", "byol", 0),
        ("lw_fedssl@v3", "simclr", 0),
        ("lw_fedssl@v4", "byol", 0),
        ("lw_fedssl@v4", "simclr", 0),
    ]


def test_an_override_of_a_field_holds_for_every_swept_value() -> None:
    words = ["strategy=fedssl,lw_fedssl", "strategy.proximal.mu=0.5"]
    for order in (words, words[::-1]):
        assert pulled({}, *order) == [("fedssl", 0.5), ("lw_fedssl", 0.5)]


def pulled(grid: dict[str, Any], *words: str) -> list[tuple[str, float]]:
    asked = read_words(words)
    configs = cells(Grid.model_validate(grid), asked.overrides, asked.sweeps)
    return sorted((one.strategy["name"], one.strategy["proximal"]["mu"]) for one in configs)


def test_a_swept_field_of_a_strategy_holds_whatever_is_said_first() -> None:
    names, values = "strategy=fedssl,lw_fedssl", "strategy.proximal.mu=0.1,1.0"
    four = [(name, mu) for name in ("fedssl", "lw_fedssl") for mu in (0.1, 1.0)]
    assert pulled({}, names, values) == pulled({}, values, names) == four
    assert pulled({}, "strategy=fedssl", values) == four[:2]
    axes = {"strategy.proximal.mu": [0.1, 1.0], "strategy": ["fedssl", "lw_fedssl"]}
    assert pulled({"axes": axes}) == four


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a,b", ["a", "b"]),
        ("0,1,2", [0, 1, 2]),
        (
            "{name: fedssl, proximal: {mu: 1}},lw_fedssl@v3",
            [{"name": "fedssl", "proximal": {"mu": 1}}, "lw_fedssl@v3"],
        ),
        ("[1, 2],[3]", [[1, 2], [3]]),
        ("null,1.5", [None, 1.5]),
    ],
)
def test_commas_part_values_but_not_within_brackets(text: str, values: list[Any]) -> None:
    assert read_words([f"key={text}"]).sweeps == {"key": values}


@pytest.mark.parametrize("text", ["[1, 2]", "{a: 1, b: 2}", "'/a,b'", "plain", "", "/tmp/x{1}", "3"])
def test_one_value_is_no_sweep(text: str) -> None:
    words = read_words([f"key={text}"])
    assert words.sweeps == {}
    assert words.overrides == {"key": yaml.safe_load(text)}


def test_an_exclusion_leaves_out_the_cells_that_agree_with_all_of_it() -> None:
    axes = {"strategy": ["fedssl", "lw_fedssl@v3"], "ssl": ["moco_v3", "byol"], "seed": [0, 1]}
    grid = {"axes": axes, "exclude": [{"strategy": "lw_fedssl@v3", "seed": 1}, {"ssl.name": "byol", "seed": 0}]}
    assert found(grid) == [
        ("fedssl", "moco_v3", 0),
        ("fedssl", "moco_v3", 1),
        ("fedssl", "byol", 1),
        ("lw_fedssl@v3", "moco_v3", 0),
    ]


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        ({"strategi": "fedssl"}, "no cell has a key strategi"),
        ({"federation.num_client": 3}, "no cell has a key federation.num_client"),
        ({"strategy": "fedssl"}, "leaves no cell"),
        ({}, "leaves no cell"),
    ],
)
def test_an_exclusion_that_cannot_be_meant_is_refused(exclude: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        found({"exclude": [exclude]})


def test_an_exclusion_that_no_cell_agrees_with_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(found({"axes": {"seed": [0, 1]}, "exclude": [{"seed": 1}, {"strategy": "fedsl"}]})) == 1
    assert "no cell has {'strategy': 'fedsl'}, so it leaves nothing out" in capsys.readouterr().err


def test_shards_are_all_cells_once() -> None:
    configs = cells(Grid(axes={"seed": list(range(7))}), {})
    parts = [shard(configs, (index, 3)) for index in (1, 2, 3)]
    assert [len(part) for part in parts] == [3, 2, 2]
    assert sorted(one.seed for part in parts for one in part) == list(range(7))


def test_a_shard_that_has_no_cell_has_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "digits", "--shard", "2/3", "--out", str(tmp_path / "out")]) == 0
    assert "has no cell" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2"])
def test_a_wrong_shard_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["run", f"--shard={text}"])
    assert "I/N with I from 1 to N" in capsys.readouterr().err


def test_sweeps_need_no_grid_file(tmp_path: Path) -> None:
    configs, _ = selected_cells(parse(["run", "digits", "strategy=fedssl,prog_fedssl", "seed=0,1,2"]))
    assert len(configs) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["profile", "digits", "seed=0,1"], "seed=0,1: several values; allowed here: one"),
        (["check", "fedssl", "blocks_per_stage=1,2"], "blocks_per_stage=1,2: several values"),
        (["run", "seed=0,1", "seed=2,3"], "seed is given several values twice"),
        (["run", "strategy=fedssl,fedsll"], "did you mean 'fedssl'?"),
        (["run", "digits", "quickstart"], "too many configurations"),
    ],
)
def test_words_that_make_no_sense_are_named(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err
