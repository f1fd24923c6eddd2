"""Finding what there is: `list KIND NAME`, `keys`, `--print-config`, `new`, and errors that name all at once."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from exhaustive import all_but
from pydantic import TypeAdapter
from tiny_config import TINY

from fedbench import __version__
from fedbench.cli import EXAMPLES, main, parser
from fedbench.config import Config, config_names, load_config, resolve_file
from fedbench.config.keys import Key, config_keys, config_schema, grid_schema, schema_keys
from fedbench.config.load import flat, read_yaml
from fedbench.encoders import Architecture
from fedbench.errors import UserError
from fedbench.federation import Mechanism, Strategy
from fedbench.federation.experiment import prepare
from fedbench.plugins import builtin_files, load_plugin
from fedbench.running.cell import identity
from fedbench.scaffold import TEMPLATES

Tiny = Callable[..., Config]


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 0
    return capsys.readouterr().out


def test_every_key_has_a_meaning() -> None:
    assert [key.name for key in config_keys() if not key.meaning] == []


def test_every_key_of_a_configuration_is_listed() -> None:
    dumped = flat(Config().model_dump(mode="json"))
    names = {key.name for key in config_keys()} - {"strategy"}
    assert {key for key in dumped if not key.startswith("strategy.")} <= names


@pytest.mark.parametrize(
    ("kind", "base"), [("strategies", Strategy), ("mechanisms", Mechanism), ("encoders", Architecture)]
)
def test_every_field_of_a_builtin_plugin_has_a_meaning(kind: Any, base: type) -> None:
    for name in builtin_files(kind):
        own = [one for one in load_plugin(kind, name, base).__mro__ if is_dataclass(one)]
        keys = [key for one in own for key in schema_keys(TypeAdapter(one).json_schema())]
        explained = {key.name for key in keys if key.meaning}
        assert {key.name for key in keys} == explained, name


def test_a_key_says_what_it_allows_its_default_and_its_meaning() -> None:
    (rounds,) = config_keys("federation.rounds")
    assert rounds == Key(
        "federation.rounds", "integer from 0 to 100,000", "48", "R, over all stages; 0: the untrained encoder."
    )


def test_a_misspelled_section_is_named_with_what_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "fedration"]) == 2
    assert "did you mean 'federation'?" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["presets", "strategies"])
def test_the_schema_accepts_what_is_shipped(kind: str) -> None:
    schema = config_schema()
    for name in config_names(kind):
        tree = read_yaml(resolve_file(name, kind))
        jsonschema.validate({"strategy": tree} if kind == "strategies" else tree, schema)


def test_the_grid_schema_accepts_every_grid() -> None:
    for name in config_names("grids"):
        jsonschema.validate(read_yaml(resolve_file(name, "grids")), grid_schema())


@pytest.mark.parametrize("tree", [{"sed": 1}, {"encoder": {"width": 0}}, {"encoder": {"in_channels": 2}}])
def test_the_schema_refuses_what_the_configuration_refuses(tree: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        load_config(tree)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tree, config_schema())


def test_the_schema_is_printed_for_editors(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(printed(capsys, "keys", "--schema", "config")) == config_schema()
    assert json.loads(printed(capsys, "keys", "--schema", "grid")) == grid_schema()


def test_presets_stand_beside_the_strategies(capsys: pytest.CaptureFixture[str]) -> None:
    names = [line.split()[0] for line in printed(capsys, "list", "strategies").splitlines()]
    assert set(names) == {*builtin_files("strategies"), *config_names("strategies")}


def test_a_strategy_is_explained_with_its_keys_and_presets(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "list", "strategies", "lw_fedssl")
    for words in (
        "strategy.blocks_per_stage = 1  (integer from 1 to 1,000)",
        "Blocks that a stage adds",
        "lw_fedssl@v3",
    ):
        assert words in text


@pytest.mark.parametrize("kind", ["mechanisms", "ssl", "encoders", "datasets", "grids", "presets"])
def test_every_name_that_is_listed_can_be_explained(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = [line.split()[0] for line in printed(capsys, "list", kind).splitlines()]
    assert names
    for name in names:
        assert len(printed(capsys, "list", kind, name)) > 40


def test_an_unknown_name_is_answered_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "encoders", "vitt"]) == 2
    assert "did you mean 'vit'?" in capsys.readouterr().err


def test_an_unknown_preset_is_answered_with_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "digits", "strategy=lw_fedssl@v5"]) == 2
    told = capsys.readouterr().err
    assert "lw_fedssl@v3" in told
    assert "lw_fedssl@v4" in told


def test_all_that_is_wrong_with_a_configuration_is_told_at_once() -> None:
    with pytest.raises(UserError) as error:
        load_config({"encoder": {"name": "vgg"}, "ssl": "mocco", "data": "didgits", "strategy": "fedsl"})
    for words in ("'vgg'", "'moco_v3'", "'digits'", "'fedssl'"):
        assert words in str(error.value)


def test_all_that_is_wrong_with_plugins_is_told_at_once(tiny: Tiny) -> None:
    strategy = {"name": "lw_fedssl", "blocks": 2, "proximal": {"mu": -1}}
    with pytest.raises(UserError) as error:
        prepare(tiny(strategy=strategy, data={"name": "npz"}))
    for words in ("strategy.blocks", "strategy.proximal.mu", "data.path is missing"):
        assert words in str(error.value)


def test_a_printed_configuration_asks_for_the_same_cell(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    text = printed(capsys, "run", str(file), "strategy=lw_fedssl@v3", "ssl=byol", "--print-config")
    again = load_config(yaml.safe_load(text))
    assert identity(prepare(again)) == identity(prepare(tiny(strategy="lw_fedssl@v3", ssl="byol")))
    assert yaml.safe_load(text)["strategy"]["calibration"]["epochs"] == 1


def test_several_cells_are_printed_as_several_documents(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "run", "digits", "seed=0,1", "--print-config")
    assert [tree["seed"] for tree in yaml.safe_load_all(text)] == [0, 1]


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", all_but("strategy", TEMPLATES))
def test_a_new_plugin_passes_the_test_that_comes_with_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "pytest test_own_idea.py" in printed(capsys, "new", kind, "own_idea.py")
    assert "class OwnIdea(" in (tmp_path / "own_idea.py").read_text()
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_own_idea.py"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_no_file_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_mine.py").write_text("mine\n")
    assert main(["new", "ssl", str(tmp_path / "mine.py")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert not (tmp_path / "mine.py").exists()


@pytest.mark.parametrize("name", ["mine", "my-idea.py", "nowhere/mine.py"])
def test_a_name_that_can_be_no_module_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "data", str(tmp_path / name)]) == 2
    assert "allowed" in capsys.readouterr().err


def test_the_version_and_the_help_need_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in ((["--version"], __version__), ([], "fedbench run --grid")):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code in (0, None)
        assert told in capsys.readouterr().out


def test_every_command_has_examples_that_can_be_read() -> None:
    for command, examples in EXAMPLES.items():
        for words in examples:
            assert parser().parse_known_args([command, *words.split()])[0].command == command
