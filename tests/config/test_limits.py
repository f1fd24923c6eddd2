"""Configurations that take for ever, or that PyYAML stumbles over, end in a short line at once."""

import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from fedbench.config import Config, load_config, parse_overrides, read_words
from fedbench.config.grid import Grid, cells, read_grid
from fedbench.config.keys import config_keys, grid_schema, schema_keys
from fedbench.config.load import read_yaml
from fedbench.config.schema import SSLConfig
from fedbench.encoders import Architecture, outline
from fedbench.errors import UserError
from fedbench.federation import Mechanism, Strategy
from fedbench.plugins import builtin_files, load_plugin
from fedbench.running.tuning import contestants
from fedbench.ssl import load_ssl
from fedbench.training.model import build_model


def written(folder: Path, text: str) -> Path:
    path = folder / "bad.yaml"
    path.write_text(text)
    return path


def refusal(action: Any, *arguments: Any) -> str:
    """The error's text: short lines, at once."""
    begin = time.process_time()
    with pytest.raises(UserError) as error:
        action(*arguments)
    assert time.process_time() - begin < 2
    assert max(map(len, str(error.value).splitlines())) < 600
    return str(error.value)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("!!int x", "'x' is no int (line 1, column 7)"),
        ("!!int ''", "'' is no int"),
        ("!!float x", "'x' is no float"),
        ("!!bool x", "'x' is no bool"),
        ("!!timestamp x", "a value of the kind 'timestamp'; allowed: plain values"),
        ("!!binary gA==", "a value of the kind 'binary'"),
        ("!!set {a}", "a value of the kind 'set'"),
        ("!!map x", "expected a mapping node, but found scalar"),
        ("!!seq x", "expected a sequence node, but found scalar"),
        ("1" * 5000, "has 5,000 characters; allowed: 100"),
        ("0x" + "f" * 20_000, "allowed: 100"),
        (":".join(["1"] * 4000), "allowed: 100"),
        ("x" * 5000, "has 5,000 characters; allowed: 4,096"),
        ("[" * 100_000, "nested deeper than allowed: 50"),
        ("{a: " * 100_000, "nested deeper than allowed: 50"),
        ("- " * 100_000, "not a valid YAML file"),
        ("[" + "1," * 30_000 + "]", "more values than allowed: 20,000"),
        ("'" + "x" * 600_000 + "'", "larger than allowed: 500,000 bytes"),
        ('"a\\0b"', "has a character of code 0"),
        ('"\\ud800"', "or half of one"),
        ("\ud800", "not a valid YAML file"),
    ],
)
def test_a_value_that_yaml_cannot_build_is_refused_with_its_place(tmp_path: Path, value: str, why: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(f"seed: {value}".encode(errors="surrogatepass"))
    text = refusal(read_yaml, path)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert why in text


def test_a_date_is_a_text_possible_or_not(tmp_path: Path) -> None:
    tree = read_yaml(written(tmp_path, "tracking: {tags: [2026-12-24, 2026-13-45]}"))
    assert load_config(tree).tracking.tags == ("2026-12-24", "2026-13-45")


@pytest.mark.parametrize(
    "word", ["a" + ".a" * 5000 + "=1", "a" + ".a" * 60 + "=1", "x" * 5000 + "=1", "strategy.\udcff=1", "a\n=1"]
)
def test_a_key_of_too_many_parts_or_letters_is_no_key(word: str) -> None:
    assert "allowed: " in refusal(parse_overrides, [word])


def test_thousands_of_keys_take_a_second_and_twenty_lines(tmp_path: Path) -> None:
    path = written(tmp_path, "\n".join(f"key{number}: 1" for number in range(9_000)))
    text = refusal(lambda: load_config(read_yaml(path)))
    assert "... and 8,980 more" in text
    assert len(text.splitlines()) == 22
    twice = written(tmp_path, path.read_text() + "\nkey8999: 1")
    assert "key 'key8999' is given twice" in refusal(read_yaml, twice)


def test_a_command_of_thousands_of_words_is_refused() -> None:
    words = [f"key{number}=1,2" for number in range(30_000)]
    assert "30,000 words; allowed: 1,000" in refusal(read_words, words)
    assert "30,000 words; allowed: 1,000" in refusal(parse_overrides, words)
    assert len(read_words(words[:1000]).sweeps) == 1000


def test_an_error_shows_no_more_of_a_value_than_fits_a_line() -> None:
    for tree in (
        {"seed": 10**5000},
        {"seed": list(range(10_000))},
        {"encoder": {"name": "x" * 100_000}},
        {"x" * 10_000: 1},
        {"strategy": "y" * 100_000},
        {"federation": {"rounds_per_stage": [1] * 900, "rounds": 3}},
        {"evaluation": {"protocols": ["z" * 10_000]}},
    ):
        refusal(load_config, tree)


@pytest.mark.parametrize(
    "word",
    [
        "encoder.depth=100000000",
        "encoder.width=1000000",
        "encoder.image_size=100000",
        "federation.rounds=1000000000000",
        "federation.num_clients=10000000",
        "federation.local_epochs=1000000",
        "optimizer.batch_size=10000000",
        "seed=9223372036854775808",
        "threads=1000000",
    ],
)
def test_a_number_without_an_answer_is_refused_with_the_limit(word: str) -> None:
    text = refusal(lambda: load_config(parse_overrides([word])))
    assert word.partition("=")[0] in text
    assert "should be less than or equal to" in text


def test_every_whole_number_of_a_configuration_has_an_upper_limit() -> None:
    keys = [*config_keys(), *schema_keys(grid_schema())]
    for kind, base in (("strategies", Strategy), ("mechanisms", Mechanism), ("encoders", Architecture)):
        for name in builtin_files(kind):
            plugin = load_plugin(kind, name, base)
            keys += schema_keys(TypeAdapter(plugin).json_schema(), f"{name}.")
    for name in builtin_files("ssl"):
        _, own = load_ssl(SSLConfig(name=name))
        keys += schema_keys(type(own).model_json_schema(), f"{name}.")
    whole = [key for key in keys if "integer" in key.allowed]
    assert len(whole) > 40
    assert not [f"{key.name}: {key.allowed}" for key in whole if " to " not in key.allowed]


def test_the_limits_allow_what_people_run() -> None:
    words = ["encoder.image_size=224", "encoder.patch_size=14", "encoder.width=1664", "encoder.heads=16"]
    words += ["encoder.depth=48", "federation.rounds=10000", "federation.num_clients=100000", "seed=1700000000000"]
    words += ["ssl.output_dim=65536", "optimizer.batch_size=8192", "probe.epochs=1000"]
    whole = outline(load_config(parse_overrides(words)).encoder).num_weights
    assert 12 * 1664**2 * 48 < whole < 12.1 * 1664**2 * 48


def test_products_have_limits_too() -> None:
    for encoder, allowed in (
        ({"width": 100_000, "depth": 100}, "12,000,000,000,000 parameters; allowed: 10,000,000,000"),
        ({"image_size": 4096, "patch_size": 1}, "16,777,216 tokens; allowed: 65,536"),
    ):
        assert allowed in refusal(outline, load_config({"encoder": encoder}).encoder)


def test_a_model_that_the_machine_has_no_memory_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: 1 if name == "SC_PHYS_PAGES" else 4096)
    assert "this machine has 0.0 GB of memory; allowed: a smaller model" in refusal(build_model, Config(), 4)


def test_a_grid_of_too_many_cells_is_refused_before_one_is_built() -> None:
    axes = {f"strategy.key{number}": [1, 2] for number in range(40)}
    assert "1099511627776 cells of the grid" in refusal(cells, Grid(axes=axes), {})
    assert "allowed: 100,000" in refusal(cells, Grid(), {}, axes)
    assert "allowed: 100,000" in refusal(cells, Grid(axes={f"a{number}": [1, 2] for number in range(50_000)}), {})


def test_trials_are_counted_before_they_are_built() -> None:
    tune = {"trials": 60_000, "space": {"ssl.temperature": {"low": 0.1, "high": 1}}}
    grid = Grid.model_validate({"axes": {"strategy": ["fedssl", "lw_fedssl"]}, "tune": tune})
    assert "120000 trials of the grid's cells; allowed: 100,000" in refusal(contestants, grid, {})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("axes: {settings: [1]}", "axes.settings: 1; allowed: mappings of keys to values"),
        ("tune: {space: {ssl.temperature: []}}", "at least 1 item"),
        ("tune: {space: {ssl.temperature: {low: 1, high: .inf}}}", "finite number"),
        ("tune: {trials: 1000000000000, space: {a: [1]}}", "less than or equal to 100000"),
        ("axes: {'a..b': [1]}", "'a..b' is no key"),
    ],
)
def test_a_grid_that_cannot_be_built_says_why(tmp_path: Path, text: str, why: str) -> None:
    assert why in refusal(lambda: cells(read_grid(written(tmp_path, text)), {}))


def test_a_name_that_no_file_can_have_is_no_file() -> None:
    from fedbench.config import resolve_file

    for name in ("x" * 100_000, "a\0b"):
        assert "is neither a file nor one of" in refusal(resolve_file, name, "grids")
