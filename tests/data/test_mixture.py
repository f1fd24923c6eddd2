"""The figures of a partition by hand, its picture, and the command that shows both."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from fedbench.cli import main
from fedbench.config import config_hash, load_config
from fedbench.data import Dataset
from fedbench.data.partitions.mixture import Mixture, describe, mixture, plot
from fedbench.federation.experiment import prepare

IMAGES = torch.zeros(8, 1, 2, 2, dtype=torch.uint8)
SKEWED = Mixture(torch.tensor([[3, 1, 0], [0, 1, 3]]), ("a", "b", "c"))


def dataset(labels: list[int], names: tuple[str, ...] = ("a", "b", "c")) -> Dataset:
    return Dataset("some", IMAGES, torch.tensor(labels), IMAGES[:0], torch.tensor([]), names)


def test_samples_are_counted_by_client_and_class():
    clients = [torch.tensor([0, 1, 2, 6]), torch.tensor([3, 4, 5, 7])]
    mixed = mixture(dataset([0, 0, 1, 2, 1, 2, 0, 2]), clients)
    assert mixed.counts.tolist() == SKEWED.counts.tolist()
    assert mixed.sizes.tolist() == [4, 4]


def test_heterogeneity_by_hand():
    # p = (3/8, 2/8, 3/8); |3/4 - 3/8| + |1/4 - 1/4| + |0 - 3/8| = 3/4 at both clients; half of it
    assert SKEWED.heterogeneity == pytest.approx(3 / 8)
    assert Mixture(torch.tensor([[2, 4], [1, 2]]), ("a", "b")).heterogeneity == 0
    # p = (1/4, 3/4): distances 3/4 and 1/4, not weighted by the clients' sizes
    assert Mixture(torch.tensor([[1, 0], [0, 3]]), ("a", "b")).heterogeneity == pytest.approx(1 / 2)


def test_the_figures_are_told_in_three_lines():
    lines = describe(Mixture(torch.tensor([[3, 1, 0], [0, 1, 0], [2, 5, 1]]), ("a", "b", "c"))).splitlines()
    assert lines[0] == "samples per client  min 1, median 4, max 8, 13 in all"
    assert lines[1] == "classes per client  min 1, median 2, max 3, 3 in all"
    assert lines[2].startswith("heterogeneity       0.")


def test_of_unlabelled_images_only_the_sizes_are_told():
    mixed = mixture(dataset([-1] * 8), [torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5, 6, 7])])
    assert describe(mixed) == "samples per client  min 3, median 4, max 5, 8 in all"


@pytest.mark.parametrize("shape", [(2, 3), (3, 1), (200, 200)])
def test_a_picture_is_drawn_of_few_and_of_many(tmp_path, shape):
    counts = torch.arange(1, shape[0] * shape[1] + 1).view(shape)
    plot(Mixture(counts, tuple(f"$class_{number}" for number in range(shape[1]))), "a $title", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert min(picture.size) > 300
        assert max(picture.size) < 2500


def test_the_command_prints_and_draws_what_a_run_would_use(tmp_path, capsys):
    words = ["data.partition.name=classes", "data.partition.classes=4", "seed=3", "data.num_train=200"]
    assert main(["partition", "digits", *words, "--out", str(tmp_path / "new" / "split.png")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("digits: classes 4 on 3 clients, seed 3\nsamples per client  min ")
    assert "classes per client  min 4, median 4, max 4, 10 in all" in out
    assert (tmp_path / "new" / "split.png").is_file()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["digits", "--out", "split.pdf"], "--out split.pdf; allowed: a file that ends in .png"),
        (["digits", "quickstart.yaml"], "too many configurations"),
        (["federation.num_clients=1000"], "federation.num_clients=1000 needs 2 samples"),
        (["data.partition.name=classes", "data.partition.classes=11"], "data.partition.classes=11; allowed"),
        (["data.partition.name=groups", "data.partition.file=none.csv"], "none.csv: cannot be read"),
    ],
)
def test_a_partition_that_cannot_be_is_an_error_and_no_picture(tmp_path, monkeypatch, capsys, words, expected):
    monkeypatch.chdir(tmp_path)
    assert main(["partition", *words]) == 2
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_groups_of_image_files_are_the_clients_and_part_of_what_names_a_run(tmp_path):
    for part in ("train", "test"):
        for name in "ab":
            for number in range(4):
                file = tmp_path / "set" / part / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), 40 * number).save(file)
    table = tmp_path / "groups.csv"
    rows = [(f"train/{name}/{number}.png", number % 2) for name in "ab" for number in range(4)]
    table.write_text("image,group\n" + "".join(f"{image},{group}\n" for image, group in rows))
    partition = {"name": "groups", "file": str(table)}
    data = {"name": "image_folder", "path": str(tmp_path / "set"), "partition": partition}
    config = load_config({"data": data, "federation": {"num_clients": 2}, "accelerator": "cpu"})
    before = prepare(config)
    assert [indices.tolist() for indices in before.client_indices] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert before.data_hash != before.dataset.content_hash
    larger = load_config(config.model_dump(), {"encoder": {"image_size": 16}})
    assert prepare(larger).data_hash != before.data_hash
    table.write_text(table.read_text().replace("0.png,0", "0.png,1").replace("1.png,1", "1.png,0"))
    assert prepare(config).data_hash != before.data_hash
    moved = {**data, "partition": {**partition, "file": str(Path("elsewhere.csv"))}}
    assert config_hash(load_config({"data": moved, "federation": {"num_clients": 2}, "accelerator": "cpu"})) == (
        config_hash(config)
    )


def test_a_set_without_labels_cannot_be_scored_and_says_so_before_training(tmp_path, capsys):
    (tmp_path / "train2017").mkdir()
    for number in range(12):
        Image.new("RGB", (8, 8)).save(tmp_path / "train2017" / f"{number}.jpg")
    words = ["data.name=coco", f"data.path={tmp_path}"]
    assert main(["run", *words, "--out", str(tmp_path / "out")]) == 2
    assert "data.name=coco has no labels to score on; allowed: evaluation.data=" in capsys.readouterr().err
    assert main(["partition", *words, "--out", str(tmp_path / "split.png")]) == 0
    assert "samples per client  min 2, median 2, max 3, 12 in all" in capsys.readouterr().out
