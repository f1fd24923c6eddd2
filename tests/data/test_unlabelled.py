"""Images without labels: what they are told by, that clients train on them, and that no probe does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedbench.cli import main
from fedbench.config import config_hash, load_config
from fedbench.config.schema import DataConfig, EncoderConfig
from fedbench.data import Dataset, load_dataset
from fedbench.data.dataset import _load
from fedbench.data.partitions.mixture import describe, mixture
from fedbench.errors import UserError


@pytest.fixture(autouse=True)
def _nothing_is_kept():
    _load.cache_clear()


def save(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(folder / name)


def numbered(folder: str, count: int) -> list[str]:
    return [f"{folder}/{number:02}.png" for number in range(count)]


def load(path: Path, name: str = "image_folder", **keys: object) -> Dataset:
    return load_dataset(DataConfig(name=name, path=str(path), **keys), EncoderConfig())


def is_unlabelled(data: Dataset, count: int) -> bool:
    return (data.train_labels.tolist(), data.class_names, len(data.test_labels)) == ([-1] * count, (), 0)


def test_a_folder_of_images_alone_has_no_labels(tmp_path):
    save(tmp_path, "b.png", "a.jpg", "c.tif", "._a.jpg", "notes.txt.png")
    (tmp_path / ".thumbnails").mkdir()
    data = load(tmp_path)
    assert is_unlabelled(data, 4)
    assert data.train_names == ["a.jpg", "b.png", "c.tif", "notes.txt.png"]


def test_folders_that_are_no_classes_are_read_to_any_depth_if_that_is_asked_for(tmp_path):
    save(tmp_path, "a.png", "2024/may/b.png", "2024/june/c.png", "2025/d.png", ".cache/e.png", "2025/._d.png")
    data = load(tmp_path, labels=False)
    assert is_unlabelled(data, 4)
    assert data.train_names == ["2024/june/c.png", "2024/may/b.png", "2025/d.png", "a.png"]


def test_of_a_set_with_a_test_part_only_the_training_part_is_the_clients(tmp_path):
    save(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png")
    assert load(tmp_path, labels=False).train_names == ["train/a/1.png", "train/b/2.png"]
    save(tmp_path / "flat", "train/1.png", "test/2.png")
    assert load(tmp_path / "flat").train_names == ["train/1.png"]


def test_folders_that_hold_only_folders_say_how_they_are_read(tmp_path):
    save(tmp_path, "2024/may/b.png", "2025/d.png")
    with pytest.raises(UserError, match=r"no image in .*2024; .* its folders have some: data\.labels=false"):
        load(tmp_path)


def test_images_beside_class_folders_are_not_read_and_that_is_told(tmp_path, capsys):
    save(tmp_path, "cover.png", *numbered("a", 10), *numbered("b", 10))
    assert len(load(tmp_path).train_labels) == 16
    told = capsys.readouterr().err
    assert "1 image(s) beside the folders are not read" in told
    assert "data.labels=false" in told


@pytest.mark.parametrize("name", ["unknown", "unlabelled", "unlabeled"])
def test_a_class_that_is_none_is_trained_on_and_neither_probed_nor_scored(tmp_path, capsys, name):
    save(tmp_path, *numbered("a", 10), *numbered(name, 7), *numbered("z", 10))
    data = load(tmp_path)
    assert data.class_names == ("a", "z")
    assert f"{name}: no class, its images have no label" in capsys.readouterr().err
    assert sum(label < 0 for label in data.train_labels.tolist()) == 7
    assert (len(data.train_labels), len(data.test_labels)) == (7 + 16, 4)
    assert data.test_labels.min() >= 0
    assert len(data.probe_part.labels) == 16
    known = data.train_labels >= 0
    assert torch.equal(data.probe_part.images, data.train_images[known])
    assert torch.equal(data.probe_part.labels, data.train_labels[known])


def test_the_labelled_images_are_split_as_they_are_without_the_others(tmp_path):
    save(tmp_path / "some", *numbered("a", 10), *numbered("b", 10))
    save(tmp_path / "more", *numbered("a", 10), *numbered("b", 10), *numbered("unknown", 7))
    some, more = load(tmp_path / "some"), load(tmp_path / "more")
    assert torch.equal(some.test_images, more.test_images)
    assert torch.equal(some.train_images, more.probe_part.images)


def test_images_of_no_class_are_counted_as_such(tmp_path):
    save(tmp_path, *numbered("a", 10), *numbered("unknown", 7), *numbered("z", 10))
    data = load(tmp_path)
    mixed = mixture(data, [torch.arange(len(data.train_labels))])
    assert mixed.class_names == ("without label", "a", "z")
    assert mixed.counts.tolist() == [[7, 8, 8]]
    assert "classes" not in describe(mixture(load(tmp_path, labels=False), [torch.arange(27)]))


def archive(path: Path, **arrays: np.ndarray) -> Path:
    images = np.arange(40, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    np.savez(path, images=images, **arrays)
    return path


def test_an_archive_without_labels_has_none_and_says_what_it_has(tmp_path, capsys):
    data = load(archive(tmp_path / "a.npz", label=np.zeros(40, int)), "npz")
    assert is_unlabelled(data, 40)
    assert data.train_images[:, 0, 0, 0].tolist() == list(range(40))
    assert "a.npz: no array `labels`, only ['images', 'label']: its images have none" in capsys.readouterr().err


def test_the_labels_of_an_archive_are_not_read_if_that_is_asked_for(tmp_path, capsys):
    data = load(archive(tmp_path / "a.npz", labels=np.arange(40) % 2), "npz", labels=False)
    assert is_unlabelled(data, 40)
    assert capsys.readouterr().err == ""


def test_a_source_whose_labels_are_part_of_it_keeps_them():
    with pytest.raises(UserError, match=r"data\.labels=false; allowed with data\.name=digits: true"):
        load_dataset(DataConfig(labels=False), EncoderConfig())


PLUGIN = """
import torch
from fedbench.data.source import DataSource, Part, Source

class Noise(DataSource):
    def load(self, data, image_size):
        images, labels = torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.arange(8) % 2
        return Source("noise", Part(images, labels), ("a", "b"), {part}=Part(images, labels - (labels == 0).int()))
"""


@pytest.mark.parametrize("part", ["test", "downstream"])
def test_a_source_that_would_score_or_probe_images_of_no_class_is_refused(tmp_path, part):
    (tmp_path / "noise.py").write_text(PLUGIN.format(part=part))
    with pytest.raises(UserError, match="an image to score, or for a probe, has no label"):
        load_dataset(DataConfig(name=str(tmp_path / "noise.py")), EncoderConfig())


def test_keys_that_are_not_used_leave_a_cell_its_name_and_leaving_broken_images_out_too():
    plain = load_config({"data": {"name": "npz", "path": "a"}})
    assert {"labels", "skip_broken"} & set(plain.model_dump()["data"]) == set()
    data = {"name": "npz", "path": "a", "skip_broken": True}
    assert config_hash(load_config({"data": data})) == config_hash(plain)
    other, judging = {"evaluation": {"data": {"name": "npz"}}}, {"evaluation": {"data": data | {"path": "b"}}}
    assert config_hash(load_config(other)) == config_hash(load_config(judging))
    assert config_hash(load_config({"data": {"name": "npz", "labels": False}})) != config_hash(plain)


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """The words that name a folder of images without labels; decoding one would be seen."""
    save(tmp_path / "photos", *[f"{number}.png" for number in range(12)])
    return ["data.name=image_folder", f"data.path={tmp_path / 'photos'}", "federation.num_clients=2"]


def test_without_a_labelled_set_the_error_shows_the_key_before_an_image_is_decoded(photos, capsys, monkeypatch):
    monkeypatch.setattr(Image, "open", None)
    assert main(["run", *photos]) == 2
    told = capsys.readouterr().err
    assert "data.name=image_folder has no labels to score on; allowed: evaluation.data={name: NAME, path: " in told


def test_a_set_without_labels_cannot_judge_either_and_the_error_names_its_key(photos, capsys, tmp_path):
    judging = f"evaluation.data={{name: image_folder, path: {tmp_path / 'photos'}}}"
    assert main(["run", *photos, judging]) == 2
    assert "evaluation.data.name=image_folder has no labels to score on" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["dirichlet", "classes, classes: 2"])
def test_a_partition_by_labels_is_refused_with_what_is_allowed(photos, capsys, split):
    assert main(["run", *photos, "evaluation.data=digits", f"data.partition={{name: {split}}}"]) == 2
    assert (
        "needs labels, which the clients' images have not; allowed: iid, quantity, groups"
        in capsys.readouterr().err
    )


def test_images_without_labels_are_trained_on_and_judged_by_a_labelled_set(photos, tmp_path, capsys):
    (tmp_path / "photos" / "broken.png").write_bytes(b"")
    tiny = ["federation.rounds=1", "probe.epochs=1", "accelerator=cpu", "threads=1", "tracking.wandb=disabled"]
    words = [*photos, *tiny, "evaluation.data={name: digits, num_train: 40}", "data.skip_broken=true"]
    assert main(["run", *words, "--out", str(tmp_path / "runs")]) == 0
    assert "image_folder:photos on 2 clients (iid)" in capsys.readouterr().out
    (run,) = (tmp_path / "runs").glob("*/manifest.json")
    manifest = json.loads(run.read_text())
    assert manifest["data"] == {"name": "photos", "train_images": 12, "left_out": 1}
    assert manifest["evaluation_data"] == {"name": "digits", "train_images": 40, "left_out": 0}
