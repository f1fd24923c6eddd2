"""`tune`: the same trials for every strategy, on images that nobody trains on, and not on the test images."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_config import TINY

from fedbench.cli import main
from fedbench.config import load_config
from fedbench.config.grid import Grid, Search, cells, read_grid
from fedbench.config.load import config_hash
from fedbench.errors import UserError
from fedbench.federation.experiment import prepare
from fedbench.files import exclusive
from fedbench.running.cell import cell_name
from fedbench.running.tuning import contestants, labels, sample, tune
from fedbench.tracking.run_directory import RunDirectory

SPACE = {
    "optimizer.base_lr": {"low": 1e-4, "high": 1e-1, "log": True},
    "strategy.calibration.base_lr": {"low": 1e-4, "high": 1e-1, "log": True},
    "ssl.temperature": [0.1, 0.2],
    "federation.local_epochs": {"low": 1, "high": 3},
}


def grid(**tune: Any) -> Grid:
    search = {"trials": 5, "space": SPACE, "seeds": [7], **tune}
    axes = {"strategy": ["fedssl", "lw_fedssl@v3"], "seed": [0, 1]}
    return Grid.model_validate({"base": TINY, "axes": axes, "tune": search})


def test_every_strategy_gets_the_same_settings() -> None:
    fedssl, layer_wise = contestants(grid(), {})
    assert len(fedssl.trials) == len(layer_wise.trials) == 5
    for (ours,), (theirs,) in zip(fedssl.trials, layer_wise.trials, strict=True):
        assert ours.optimizer == theirs.optimizer
        assert ours.ssl == theirs.ssl
        assert "calibration" not in ours.strategy
        assert ours.seed == theirs.seed == 7
    assert len({trial.strategy["calibration"]["base_lr"] for (trial,) in layer_wise.trials}) == 5


def test_contestants_of_one_name_are_told_apart_by_what_they_differ_in() -> None:
    axes = {
        "strategy": ["fedssl", "lw_fedssl@v4"],
        "encoder.transforms": [None, [{"name": "cola", "ratio": 0.5}], ["shared_mlp"]],
    }
    several = Grid.model_validate({"base": TINY, "axes": axes, "tune": {"trials": 1, "space": SPACE}})
    names = [f"{strategy} moco_v3" for strategy in axes["strategy"]]
    words = ["", " encoder.transforms=cola(ratio=0.5)", " encoder.transforms=shared_mlp"]
    assert sorted(labels(contestants(several, {}))) == sorted(name + word for name in names for word in words)
    assert labels(contestants(grid(), {})) == ["fedssl moco_v3", "lw_fedssl@v3 moco_v3"]


def test_the_points_fill_the_space_and_follow_from_the_samplers_seed() -> None:
    points = sample(grid(trials=64).tune)  # type: ignore[arg-type]
    rates = torch.tensor([point["optimizer.base_lr"] for point in points]).log10()
    assert -4 <= rates.min() <= -3.8
    assert -1.2 <= rates.max() <= -1
    assert rates.mean().item() == pytest.approx(-2.5, abs=0.05)  # evenly in the logarithm
    assert {point["ssl.temperature"] for point in points} == {0.1, 0.2}
    epochs = [point["federation.local_epochs"] for point in points]
    assert all(20 <= epochs.count(number) <= 22 for number in (1, 2, 3))
    assert sample(grid().tune) == points[:5]  # type: ignore[arg-type]
    assert sample(grid(sampler_seed=1).tune) != points[:5]  # type: ignore[arg-type]


def test_validation_images_are_taken_from_the_training_images_and_nobody_trains_on_them() -> None:
    test = prepare(load_config(TINY, {"data": {"num_train": None}}))
    held_out = prepare(load_config(TINY, {"data": {"num_train": None}, "evaluation": {"split": "validation"}}))

    def rows(images: torch.Tensor) -> set[bytes]:
        return {image.numpy().tobytes() for image in images}

    scored = held_out.dataset.test_images
    assert len(scored) == 144
    assert rows(scored) <= rows(test.dataset.train_images)
    assert not rows(scored) & rows(test.dataset.test_images)
    assert not rows(scored) & rows(held_out.dataset.train_images)
    assert not rows(scored) & rows(held_out.dataset.probe_part.images)
    assert sum(map(len, held_out.client_indices)) == len(held_out.dataset.train_images) == 1437 - 144
    assert held_out.data_hash != test.data_hash


def test_the_test_images_are_not_read_for_validation(tmp_path: Path) -> None:
    from PIL import Image

    for part, count in (("train", 20), ("test", 2)):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                Image.new("L", (8, 8), color=number * 9 + ord(name)).save(tmp_path / part / name / f"{number}.png")
    (tmp_path / "test" / "a" / "0.png").write_bytes(b"no image")
    data = {"data": {"name": "image_folder", "path": str(tmp_path), "num_train": None}}
    held_out = prepare(load_config(TINY, data, {"evaluation": {"split": "validation"}}))
    assert len(held_out.dataset.test_images) == 4
    with pytest.raises(UserError, match=r"0\.png"):
        prepare(load_config(TINY, data))


def test_a_neutral_split_and_the_record_of_a_tuning_change_no_cell() -> None:
    plain = load_config(TINY)
    record = {"grid": "g", "trials": 2, "space": {}, "sampler": "", "split": "validation", "protocol": "linear"}
    tuned = load_config(TINY, {"tuning": {**record, "seeds": [7], "score": 0.5}, "evaluation": {"split": "test"}})
    assert config_hash(tuned) == config_hash(plain)
    assert config_hash(load_config(TINY, {"evaluation": {"split": "validation"}})) != config_hash(plain)
    assert "split" not in plain.model_dump()["evaluation"]


@pytest.mark.parametrize(
    ("tune", "complaint"),
    [
        ({"seeds": [1]}, r"tune\.seeds=\[1\] has seeds of the grid \[0, 1\]; allowed: others"),
        ({"space": {"data.num_train": [3, 4]}}, r"tune\.space\.data\.num_train: not to be tuned"),
        ({"space": {"optimizer.base_rate": [3, 4]}}, r"optimizer\.base_rate: unknown key; did you mean 'base_lr'"),
    ],
)
def test_a_search_that_cannot_be_fair_is_refused(tune: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        contestants(grid(**tune), {})


@pytest.mark.parametrize("ends", [{"low": 2, "high": 1}, {"low": 0, "high": 1, "log": True}])
def test_a_range_must_have_an_inside(ends: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"tune": {"space": {"optimizer.base_lr": ends}}}))
    with pytest.raises(UserError, match=r"tune\.space\.optimizer\.base_lr.*allowed: low below high"):
        read_grid(path)


def test_the_winners_are_the_best_of_the_trials_and_run_with_other_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "grid.yaml", tmp_path / "trials"
    tree = {
        "base": {**TINY, "tracking": {"wandb": "disabled"}, "federation": {"num_clients": 2, "rounds": 3}},
        "axes": {"strategy": ["fedssl", "lw_fedssl"], "seed": [0, 1]},
        "tune": {"trials": 3, "space": {"optimizer.base_lr": {"low": 1e-4, "high": 1e-1, "log": True}}},
    }
    path.write_text(yaml.safe_dump(json.loads(json.dumps(tree))))
    words = ["tune", str(path), "--out", str(out)]
    assert main(words) == 0
    folders = [RunDirectory(folder) for folder in out.iterdir() if folder.is_dir()]
    assert len(folders) == 6
    best: dict[str, tuple[float, float]] = {}
    for folder in folders:
        config, top1 = folder.manifest()["config"], folder.summary()["probe/linear_top1"]
        assert config["evaluation"]["split"] == "validation"
        name = config["strategy"]["name"]
        best[name] = max(best.get(name, (0.0, 0.0)), (top1, config["optimizer"]["base_lr"]))
    winners = cells(read_grid(out / "tuned.yaml"), {})
    assert [(config.strategy["name"], config.seed) for config in winners] == [
        ("fedssl", 0),
        ("lw_fedssl", 0),
        ("fedssl", 1),
        ("lw_fedssl", 1),
    ]
    for config in winners:
        record = config.tuning
        assert record is not None
        score = best[config.strategy["name"]][0]
        tied = [f for f in folders if f.summary()["probe/linear_top1"] == score]
        assert config.optimizer.base_lr in {f.manifest()["config"]["optimizer"]["base_lr"] for f in tied}
        assert (record.trials, record.split, record.seeds) == (3, "validation", (1000,))
        assert record.score == score
        assert config.evaluation.split == "test"
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/summary.json")}
    capsys.readouterr()
    assert main(words) == 0
    assert capsys.readouterr().err.count("was finished already") == 6
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*/summary.json")}


def test_nothing_is_chosen_while_another_process_runs_a_trial(tmp_path: Path) -> None:
    """A lock on a run's folder is another process to whoever finds it held, even if it is this one's own."""
    tree = {"base": {**TINY, "federation": {"num_clients": 2, "rounds": 1}}, "axes": {"strategy": ["fedssl"]}}
    space = {"optimizer.base_lr": {"low": 1e-4, "high": 1e-1, "log": True}}
    small = Grid.model_validate({**tree, "tune": {"trials": 2, "space": space}})
    (one,) = contestants(small, {})
    held = tmp_path / cell_name(prepare(one.trials[1][0]))
    with exclusive(held), pytest.raises(UserError, match=f"1 trial.* no result yet, {held.name} is one"):
        tune(small, "small", {}, tmp_path, jobs=1)
    assert not (tmp_path / "tuned.yaml").exists()
    tune(small, "small", {}, tmp_path, jobs=1)
    assert (tmp_path / "tuned.yaml").exists()


def test_a_run_is_evaluated_on_the_split_that_it_was_trained_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps({**TINY, "tracking": {"wandb": "disabled"}}))))
    assert main(["run", str(path), "--out", str(tmp_path / "runs")]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "runs"), "--protocol", "knn", "evaluation.split=validation"]) == 2
    assert "was trained for the split test; allowed: test" in capsys.readouterr().err


def test_a_search_without_a_space_is_refused() -> None:
    with pytest.raises(ValueError, match="space"):
        Search.model_validate({"space": {}})
