"""What each source delivers, and what it says about files that are wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from fedbench.config.schema import DataConfig, EncoderConfig
from fedbench.data import data_source, load_dataset
from fedbench.data.source import Part, Source
from fedbench.errors import UserError

GREEN, RED = (10, 200, 30), (220, 20, 40)


def load(name: str, path: Path | str | None = None) -> Source:
    data = DataConfig(name=name, path=None if path is None else str(path))
    return data_source(data).load(data, 8)


def pixels(part: Part, size: int, channels: int) -> torch.Tensor:
    """All images (N, C, S, S)."""
    assert not isinstance(part.images, torch.Tensor)
    return torch.cat(list(part.images.read(torch.arange(len(part.images)), size, channels)))


def save(path: Path, colour: tuple[int, int, int] = RED, size: tuple[int, int] = (4, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def archive(folder: Path, **changes: object) -> str:
    arrays = {"images": np.zeros((4, 5, 6, 3), np.uint8), "labels": np.array([7, 3, 3, 7])} | changes
    path = folder / "pictures.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return str(path)


def test_digits_are_scikit_learns_scaled_from_16_to_255():
    source = load("digits")
    expected = torch.from_numpy(load_digits().images) * 255 / 16
    assert source.train.images.shape == (1797, 1, 8, 8)
    assert (source.train.images[:, 0] - expected).abs().max() <= 0.5
    assert source.train.labels.tolist() == load_digits().target.tolist()
    assert source.class_names == tuple("0123456789")


def test_a_folder_gives_sorted_classes_and_exact_pixels(tmp_path):
    save(tmp_path / "b" / "2.png", GREEN)
    save(tmp_path / "b" / "1.bmp", RED)
    save(tmp_path / "a" / "1.PNG", GREEN)
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    source = load("image_folder", tmp_path)
    assert (source.name, source.class_names, source.test) == (tmp_path.name, ("a", "b"), None)
    assert source.train.labels.tolist() == [0, 1, 1]
    images = pixels(source.train, 4, 3)
    assert images.dtype == torch.uint8
    assert images[:, :, 3, 0].tolist() == [list(GREEN), list(RED), list(GREEN)]


def test_a_folder_keeps_rows_columns_and_channels_apart(tmp_path):
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    save(tmp_path / "a" / "1.png")
    Image.fromarray(pixels_HWC).save(tmp_path / "a" / "1.png")
    image = pixels(load("image_folder", tmp_path).train, 4, 3)[0]
    assert image.tolist() == pixels_HWC.transpose(2, 0, 1).tolist()


def test_a_folder_of_mixed_sizes_and_kinds_comes_out_at_one_size_in_grey(tmp_path):
    save(tmp_path / "a" / "wide.jpg", (90, 90, 90), (17, 6))
    save(tmp_path / "a" / "tall.webp", (90, 90, 90), (3, 9))
    images = pixels(load("image_folder", tmp_path).train, 5, 1)
    assert images.shape == (2, 1, 5, 5)
    assert (images.int() - 90).abs().max() <= 2


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_folder_with_train_and_test_or_val_ships_its_split(tmp_path, name):
    save(tmp_path / "train" / "a" / "1.png")
    save(tmp_path / "train" / "b" / "1.png")
    save(tmp_path / name / "b" / "1.png", GREEN)
    source = load("image_folder", tmp_path)
    assert source.test is not None
    assert (source.train.labels.tolist(), source.test.labels.tolist()) == ([0, 1], [1])
    assert pixels(source.test, 4, 3)[0, :, 0, 0].tolist() == list(GREEN)


def test_a_folder_that_is_wrong_is_named(tmp_path):
    with pytest.raises(UserError, match=r"data\.path=.*nowhere: no such folder"):
        load("image_folder", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no image in .*; allowed: \.jpg"):
        load("image_folder", tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"no image in .*a; allowed: \.jpg"):
        load("image_folder", tmp_path)


def test_a_test_class_that_was_never_trained_is_named(tmp_path):
    save(tmp_path / "train" / "a" / "1.png")
    save(tmp_path / "test" / "zebra" / "1.png")
    with pytest.raises(UserError, match=r"zebra is no class of the training part: a"):
        load("image_folder", tmp_path)


@pytest.mark.parametrize("keep", [0, 40])
def test_an_unreadable_image_is_named(tmp_path, keep):
    save(tmp_path / "a" / "broken.png", size=(64, 64))
    file = tmp_path / "a" / "broken.png"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"1 of 1 images cannot be read:\n  .*broken\.png: no whole image"):
        pixels(load("image_folder", tmp_path).train, 4, 3)


def test_an_image_of_32_bits_is_named_and_not_clipped(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((4, 4), 40_000, np.int32)).save(tmp_path / "a" / "deep.tif")
    with pytest.raises(UserError, match=r"deep\.tif: its pixels are of the kind 'I'; allowed: 8 bits"):
        pixels(load("image_folder", tmp_path).train, 4, 3)


def test_images_of_a_folder_are_called_by_their_path(tmp_path):
    for name in ("train/a/1.png", "train/b/2.png", "test/a/3.png"):
        save(tmp_path / name)
    assert load("image_folder", tmp_path).train.names == ["train/a/1.png", "train/b/2.png"]


def test_an_archive_gives_channels_first_and_labels_from_zero(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3), dtype=np.uint8)
    source = load("npz", archive(tmp_path, images=images))
    assert pixels(source.train, 5, 3).tolist() == images.transpose(0, 3, 1, 2).tolist()
    assert source.train.labels.tolist() == [1, 0, 0, 1]
    assert (source.name, source.class_names, source.test) == ("pictures", ("3", "7"), None)


def test_an_archive_of_grey_images_with_a_test_part_ships_its_split(tmp_path):
    grey, test = np.full((4, 5, 6), 9, np.uint8), np.full((2, 5, 6), 8, np.uint8)
    source = load("npz", archive(tmp_path, images=grey, test_images=test, test_labels=np.array([7, 7])))
    assert source.test is not None
    assert pixels(source.train, 5, 1).shape == (4, 1, 5, 5)
    assert pixels(source.test, 5, 1).unique().tolist() == [8]
    assert source.test.labels.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, r"array `images` is missing; found: \['labels'\]"),
        ({"images": None, "labels": None, "x": np.zeros(3)}, r"array `images` is missing; found: \['x'\]"),
        (
            {"labels": None, "test_images": np.zeros((1, 5, 6, 3), np.uint8)},
            r"array `labels` is missing; found: \['images', 'test_images'\]",
        ),
        ({"test_images": np.zeros((1, 5, 6, 3), np.uint8)}, "array `test_labels` is missing"),
        ({"images": np.zeros((4, 5, 6, 3))}, r"`images` is float64 \(4, 5, 6, 3\); allowed: uint8"),
        ({"images": np.zeros((4, 3, 5, 6), np.uint8)}, r"`images` is uint8 \(4, 3, 5, 6\); allowed"),
        ({"images": np.zeros((4, 30), np.uint8)}, r"`images` is uint8 \(4, 30\)"),
        ({"images": np.zeros((0, 5, 6), np.uint8)}, "not empty"),
        ({"labels": np.zeros(4)}, r"`labels` is float64 \(4,\); allowed: integers"),
        ({"labels": np.zeros((4, 1), int)}, r"`labels` is int64 \(4, 1\)"),
        ({"labels": np.zeros(3, int)}, "`labels` is .*allowed: as many as `images`: 4"),
        ({"labels": np.array([None] * 4)}, "not a .npz file of plain arrays"),
        (
            {"test_images": np.zeros((1, 5, 6, 3), np.uint8), "test_labels": np.array([5])},
            "`test_labels` has 5; allowed: the values of `labels`",
        ),
    ],
)
def test_an_array_that_is_missing_or_wrong_is_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load("npz", archive(tmp_path, **changes))


def test_a_file_that_is_missing_or_no_archive_is_named(tmp_path):
    with pytest.raises(UserError, match=r"data\.path=.*none\.npz: no such file"):
        load("npz", tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "single.npy", np.zeros(3))
    for name in ("text.npz", "single.npy"):
        with pytest.raises(UserError, match=f"{name}: not a .npz file"):
            load("npz", tmp_path / name)


def test_an_archive_is_read_piece_by_piece_and_only_the_rows_that_are_asked_for(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (11, 5, 5, 3), dtype=np.uint8)
    part = load("npz", archive(tmp_path, images=images, labels=np.arange(11))).train
    monkeypatch.setattr("fedbench.data.archive.BATCH", 4)
    rows = torch.tensor([1, 2, 3, 8])  # none of the second piece
    batches = list(part.images.read(rows, 5, 3))
    assert [len(batch) for batch in batches] == [3, 1]
    assert torch.cat(batches).tolist() == images[rows].transpose(0, 3, 1, 2).tolist()


@pytest.mark.parametrize("grey", [True, False])
def test_an_archive_in_fortran_order_gives_the_same_pixels(tmp_path, grey):
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 5) if grey else (4, 5, 5, 3), dtype=np.uint8)
    plain = pixels(load("npz", archive(tmp_path, images=images)).train, 5, 3)
    turned = pixels(load("npz", archive(tmp_path, images=np.asfortranarray(images))).train, 5, 3)
    assert torch.equal(plain, turned)


def test_an_archive_that_is_damaged_inside_is_named(tmp_path):
    path = Path(archive(tmp_path))
    content = bytearray(path.read_bytes())
    content[250] ^= 1  # a pixel: its checksum differs
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"pictures\.npz: not a .npz file of plain arrays .*CRC"):
        pixels(load("npz", path).train, 5, 3)


def test_parts_of_different_channels_are_refused(tmp_path):
    path = archive(tmp_path, test_images=np.zeros((2, 5, 6), np.uint8), test_labels=np.array([3, 7]))
    with pytest.raises(UserError, match=r"pictures\.npz has parts of .*channels; allowed: the same number"):
        load_dataset(DataConfig(name="npz", path=path), EncoderConfig())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "npz"}, r"data\.path is missing; data\.name=npz needs the path"),
        ({"name": "digits", "path": "x"}, r"data\.path=x; allowed with data\.name=digits: none"),
        ({"name": "coco", "download": True}, r"data\.download=true; allowed with data\.name=coco: false"),
        ({"name": "cifar10", "size": 64}, r"data\.size=64; allowed with data\.name=cifar10: none"),
        ({"name": "pathmnist", "size": 32}, r"data\.size=32; allowed .*: 28, 64, 128, 224"),
        ({"name": "cifar01"}, r"datasets: 'cifar01' is not known; did you mean 'cifar10'\?"),
    ],
)
def test_what_a_source_does_not_allow_is_refused_before_anything_is_read(fields, message):
    with pytest.raises(UserError, match=message):
        data_source(DataConfig(**fields))


PLUGIN = '''
"""Two classes of noise."""

import torch
from fedbench.data.source import DataSource, Part, Source


class Noise(DataSource):
    def load(self, data, image_size):
        images = torch.full((40, 1, 8, 8), image_size, dtype=torch.uint8)
        return Source("noise", Part(images, torch.arange(40) % 2), ("even", "odd"))
'''


def test_a_source_outside_the_repository_is_loaded_by_path(tmp_path):
    (tmp_path / "noise.py").write_text(PLUGIN)
    dataset = load_dataset(DataConfig(name=str(tmp_path / "noise.py")), EncoderConfig())
    assert (dataset.name, len(dataset.train_labels), len(dataset.test_labels)) == ("noise", 32, 8)
    assert dataset.train_images.unique().tolist() == [8]


def test_a_class_without_an_image_is_named(tmp_path):
    (tmp_path / "noise.py").write_text(PLUGIN.replace('"odd")', '"odd", "rare")'))
    with pytest.raises(UserError, match="class 'rare' has no image to learn from"):
        load_dataset(DataConfig(name=str(tmp_path / "noise.py")), EncoderConfig())


def test_a_label_of_no_class_is_refused(tmp_path):
    (tmp_path / "noise.py").write_text(PLUGIN.replace("% 2", "% 3"))
    with pytest.raises(UserError, match="each with a label of 0 to 1"):
        load_dataset(DataConfig(name=str(tmp_path / "noise.py")), EncoderConfig())
