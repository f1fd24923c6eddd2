from pathlib import Path
from typing import Any

import pytest

from fedbench.config import Config, config_hash, load_config, parse_overrides, resolve_file
from fedbench.config.load import merge, read_yaml
from fedbench.errors import UserError


def message(*trees: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        load_config(*trees)
    return str(error.value)


def test_overrides_are_yaml_and_dotted() -> None:
    words = ["seed=3", "ssl.name=byol", "ssl.temperature=1e-1", "tracking.tags=[a, b]", "data.num_train=null"]
    config = load_config({"data": {"num_train": 50}}, parse_overrides(words))
    assert (config.seed, config.ssl.name, config.ssl.temperature) == (3, "byol", 0.1)
    assert config.tracking.tags == ("a", "b")
    assert config.data.num_train is None


@pytest.mark.parametrize("word", ["seed", "=3", "ssl..name=byol", "seed=[1"])
def test_a_word_that_is_no_override_is_refused(word: str) -> None:
    with pytest.raises(UserError) as error:
        parse_overrides([word])
    assert "allowed" in str(error.value) or "YAML" in str(error.value)


def test_a_misspelled_key_is_named_with_the_key_that_was_meant() -> None:
    text = message({"data": {"skipbroken": True}})
    assert "data.skipbroken" in text
    assert "did you mean 'skip_broken'?" in text


def test_all_errors_are_reported_at_once_with_key_and_value() -> None:
    text = message({"seed": "many", "optimizer": {"batch_size": 0}, "sll": {}})
    assert "seed" in text
    assert "'many'" in text
    assert "optimizer.batch_size" in text
    assert "did you mean 'ssl'?" in text


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"federation": {"num_clients": 3, "participants": 4}}, "participants=4 exceeds num_clients=3"),
        ({"strategy": {"name": None}}, "needs a name"),
        (
            {"encoder": {"name": "swin"}},
            "'swin' is not known; allowed: cnn, mobilenet_v3_small, resnet18, resnet50",
        ),
    ],
)
def test_an_impossible_combination_is_refused(tree: dict[str, Any], words: str) -> None:
    assert words in message(tree)


def test_a_plain_name_stands_for_a_mapping_with_that_name() -> None:
    config = load_config({"strategy": "lw_fedssl", "ssl": "byol"})
    assert config.strategy == {"name": "lw_fedssl"}
    assert config.ssl.name == "byol"
    assert config.ssl.hidden_dim == 512


def test_a_field_on_top_of_a_plain_name_keeps_the_name() -> None:
    assert merge({"strategy": "lw_fedssl"}, {"strategy": {"blocks_per_stage": 2}}) == {
        "strategy": {"name": "lw_fedssl", "blocks_per_stage": 2}
    }


def test_another_strategy_drops_the_fields_of_the_one_before() -> None:
    base = {"strategy": {"name": "lw_fedssl", "blocks_per_stage": 2}}
    assert merge(base, {"strategy": "fedssl"}) == {"strategy": {"name": "fedssl"}}
    assert merge(base, {"strategy": {"name": "fedssl"}}) == {"strategy": {"name": "fedssl"}}


def test_another_ssl_method_keeps_the_heads() -> None:
    base = {"ssl": {"name": "moco_v3", "hidden_dim": 64}}
    assert load_config(base, {"ssl": "byol"}).ssl.hidden_dim == 64
    assert load_config(base, {"ssl": {"name": "byol"}}).ssl.hidden_dim == 64


def test_the_learning_rate_follows_the_batch() -> None:
    optimizer = load_config({"optimizer": {"base_lr": 1.5e-4, "batch_size": 512}}).optimizer
    assert optimizer.lr == pytest.approx(3e-4)


def test_the_hash_names_what_changes_a_result_and_nothing_else() -> None:
    config = Config()
    assert config_hash(config) == config_hash(load_config({"tracking": {"wandb": "disabled"}}))
    assert config_hash(config) != config_hash(load_config({"seed": 1}))


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"grids: 'quickstrat' .*quickstart"):
        resolve_file("quickstrat", "grids")


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n"])
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        read_yaml(path)


def test_python_objects_in_yaml_are_not_built(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text("seed: !!python/object/apply:os.getpid []\n")
    with pytest.raises(UserError, match="not a valid YAML file"):
        read_yaml(path)


@pytest.mark.parametrize(
    "text",
    ["seed: 1\nseed: 2\n", "a: &x {b: 1}\nc: *x\n", "strategy: &a {name: fedssl, x: *a}\n"],
    ids=["twice", "alias", "recursive"],
)
def test_yaml_that_hides_a_mistake_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hides.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"given twice|aliases are not allowed"):
        read_yaml(path)


def test_a_binary_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(bytes(range(128, 256)))
    with pytest.raises(UserError, match=r"binary\.yaml: not a valid YAML file"):
        read_yaml(path)


def test_the_order_of_overrides_does_not_matter() -> None:
    words = ["ssl.temperature=0.7", "ssl=byol", "strategy.blocks_per_stage=2", "strategy=lw_fedssl"]
    for order in (words, words[::-1]):
        config = load_config({"strategy": "fedssl"}, parse_overrides(order))
        assert (config.ssl.name, config.ssl.temperature) == ("byol", 0.7)
        assert config.strategy == {"name": "lw_fedssl", "blocks_per_stage": 2}


@pytest.mark.parametrize(
    "word", ["seed=true", "optimizer.base_lr=.inf", "ssl.temperature=.nan", "encoder.width=true"]
)
def test_infinities_and_booleans_are_no_numbers(word: str) -> None:
    assert word.split("=")[0] in message(parse_overrides([word]))


def test_a_preset_can_be_named_as_such() -> None:
    by_name = load_config({"strategy": {"name": "lw_fedssl@v4", "moon": True}})
    assert load_config({"strategy": {"preset": "lw_fedssl@v4", "moon": True}}) == by_name
    with pytest.raises(UserError, match=r"strategy\.name: 'lw_fedssl@v9' is not known"):
        load_config({"strategy": {"preset": "lw_fedssl@v9"}})


def test_a_preset_of_a_strategy_is_written_out_and_keeps_its_name() -> None:
    words = ["strategy=lw_fedssl@v3", "strategy.alignment=null", "strategy.calibration.epochs=3"]
    config = load_config(parse_overrides(words))
    assert config.strategy["name"] == "lw_fedssl"
    assert config.strategy["preset"] == "lw_fedssl@v3"
    assert config.strategy["alignment"] is None
    assert config.strategy["calibration"] == {"share": 0.1, "epochs": 3, "base_lr": None}
    assert load_config(config.model_dump(mode="json")) == config


def test_keys_that_came_after_the_first_results_are_left_out_where_they_are_not_given() -> None:
    data = Config().model_dump()["data"]
    assert set(data) == {"name", "path", "num_train", "partition"}
    assert set(data["partition"]) == {"name", "beta", "min_size"}
    partition = {"name": "classes", "classes": 2}
    given = load_config({"data": {"size": 28, "partition": partition}}).model_dump()["data"]
    assert (given["size"], given["partition"]["classes"]) == (28, 2)


def test_the_hash_does_not_depend_on_whether_data_are_downloaded_nor_on_where_files_lie() -> None:
    def with_data(**data: Any) -> str:
        return config_hash(load_config({"data": data}))

    assert with_data(download=True) == with_data(path="elsewhere") == with_data()
    groups = [{"name": "groups", "file": file} for file in ("a.csv", "b.csv")]
    assert with_data(partition=groups[0]) == with_data(partition=groups[1]) != with_data()


def test_only_a_switch_takes_true_and_false() -> None:
    assert load_config({"data": {"download": True}}).data.download
    assert "data.num_train: true and false are not numbers" in message({"data": {"num_train": True}})


def test_a_mechanism_without_a_strategy_is_the_default_strategys() -> None:
    assert load_config({"strategy": {"salf": True}}).strategy == {"name": "fedssl", "salf": True}
    assert load_config({"strategy": "prog_fedssl"}, {"strategy": {"salf": True}}).strategy["name"] == "prog_fedssl"
