"""`~` is the home folder wherever a path is given, also where no shell has seen it."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_config import TINY

import fedbench
from fedbench.cli import main
from fedbench.config.schema import PartitionConfig
from fedbench.data.dataset import _load
from fedbench.data.partitions.groups import by_groups
from fedbench.federation import Strategy
from fedbench.plugins import load_plugin

PLUGIN = """
from fedbench.federation import GrowingStrategy, StagePlan

class Mine(GrowingStrategy):
    def plan(self, stage, num_blocks):
        return StagePlan(num_blocks, range(num_blocks), range(num_blocks))
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a configuration, a grid and images in it; the working folder is another."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("home", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    _load.cache_clear()  # its keys are paths as they were written, of another home
    home = tmp_path / "home"
    data = {"name": "npz", "path": "~/some.npz", "num_train": 20}
    tree = TINY | {"data": data, "federation": {"num_clients": 2, "rounds": 0}}
    (home / "mine.yaml").write_text(yaml.safe_dump(tree))
    (home / "grid.yaml").write_text(yaml.safe_dump({"base": tree, "axes": {"seed": [0, 1]}}))
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    for name in ("some", "other"):
        np.savez(home / f"{name}.npz", images=images, labels=np.arange(40) % 2)
    return home


def done(*words: str) -> bool:
    return main(list(words)) == 0


def test_configuration_data_judging_data_and_results_are_found(home):
    assert done("run", "~/mine.yaml", "evaluation.data={name: npz, path: ~/other.npz}", "--out=~/runs")
    assert len(list(home.glob("runs/*/summary.json"))) == 1


@pytest.fixture
def run(home: Path) -> str:
    """The folder of a finished run, as a user names it."""
    assert done("run", "~/mine.yaml", "--out=~/runs")
    (folder,) = (home / "runs").glob("untrained-*")
    return f"~/runs/{folder.name}"


def test_runs_are_reported_and_evaluated_and_their_encoder_is_taken_out(home, run, capsys):
    assert done("report", "~/runs", "--out=~/report")
    assert (home / "report" / "report.html").is_file()
    assert done("evaluate", run, "--protocol", "knn", "--data", "name=npz", "path=~/other.npz")
    assert len(list(home.glob("runs/*/evaluation-knn-other-*.json"))) == 1
    assert done("export", run, "--out=~/encoder.safetensors")
    assert (home / "encoder.safetensors").is_file()
    assert fedbench.load_encoder(run).feature_dim == TINY["encoder"]["width"]


def test_a_grid_is_found(home, capsys):
    assert done("run", "--grid=~/grid.yaml", "--out=~/runs", "--dry-run")
    assert done("run", "--grid", "~/grid.yaml", "--out=~/runs", "--dry-run")
    assert "2 cell(s) into" in capsys.readouterr().err


def test_a_grid_to_tune_and_the_place_of_its_trials_are_found(home, capsys):
    grid = yaml.safe_load((home / "grid.yaml").read_text())
    search = {"trials": 1, "space": {"optimizer.base_lr": {"low": 0.1, "high": 0.2}}}
    (home / "grid.yaml").write_text(yaml.safe_dump(grid | {"tune": search}))
    assert done("tune", "~/grid.yaml", "--out=~/trials", "--dry-run")


def test_a_picture_is_written(home):
    assert done("partition", "~/mine.yaml", "--out=~/split.png")
    assert (home / "split.png").is_file()


def test_a_plugin_is_found(home):
    (home / "mine.py").write_text(PLUGIN)
    assert load_plugin("strategies", "~/mine.py", Strategy).__name__ == "Mine"


def test_a_file_of_groups_is_found(home):
    (home / "groups.csv").write_text("image,group\n0,a\n1,a\n2,b\n3,b\n")
    config = PartitionConfig(name="groups", file="~/groups.csv")
    assert [indices.tolist() for indices in by_groups("0123", 2, config)] == [[0, 1], [2, 3]]


def test_a_run_on_a_partition_from_a_file_reads_it_again_for_its_hash(home):
    (home / "groups.csv").write_text("\n".join(["image,group", *[f"{n},{n % 2}" for n in range(40)]]))
    words = ["data.partition={name: groups, file: ~/groups.csv}", "--out=~/runs"]
    assert done("run", "~/mine.yaml", *words)


def test_decoded_images_are_kept_where_the_variable_says(home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "~/decoded")
    assert done("partition", "~/mine.yaml", "--out=~/split.png")
    assert len(list(home.glob("decoded/fedbench/*.npy"))) == 2


def test_the_name_of_nobody_is_an_error_in_one_line(home, capsys):
    assert main(["run", "~nobody-of-that-name/mine.yaml"]) == 2
    assert "'~nobody-of-that-name/mine.yaml' is neither a file nor one of" in capsys.readouterr().err
