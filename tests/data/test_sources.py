"""What each source delivers, and what it says about files that are wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from fedbench.data.sources import digits, image_folder, npz
from fedbench.errors import UserError

GREEN, RED = (10, 200, 30), (220, 20, 40)


def save(path: Path, colour: tuple[int, int, int] = RED, size: tuple[int, int] = (4, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def archive(folder: Path, **changes: object) -> str:
    arrays = {"images": np.zeros((4, 5, 6, 3), np.uint8), "labels": np.array([7, 3, 3, 7])} | changes
    path = folder / "pictures.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return str(path)


def test_digits_are_scikit_learns_scaled_from_16_to_255():
    source = digits.load(None, 8, 1)
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
    source = image_folder.load(str(tmp_path), 4, 3)
    assert (source.name, source.class_names, source.test) == (tmp_path.name, ("a", "b"), None)
    assert source.train.labels.tolist() == [0, 1, 1]
    assert source.train.images.dtype == torch.uint8
    assert source.train.images[:, :, 3, 0].tolist() == [list(GREEN), list(RED), list(GREEN)]


def test_a_folder_keeps_rows_columns_and_channels_apart(tmp_path):
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    save(tmp_path / "a" / "1.png")
    Image.fromarray(pixels_HWC).save(tmp_path / "a" / "1.png")
    image = image_folder.load(str(tmp_path), 4, 3).train.images[0]
    assert image.tolist() == pixels_HWC.transpose(2, 0, 1).tolist()


def test_a_folder_of_mixed_sizes_and_kinds_comes_out_at_one_size_in_grey(tmp_path):
    save(tmp_path / "a" / "wide.jpg", (90, 90, 90), (17, 6))
    save(tmp_path / "a" / "tall.webp", (90, 90, 90), (3, 9))
    images = image_folder.load(str(tmp_path), 5, 1).train.images
    assert images.shape == (2, 1, 5, 5)
    assert (images.int() - 90).abs().max() <= 2


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_folder_with_train_and_test_or_val_ships_its_split(tmp_path, name):
    save(tmp_path / "train" / "a" / "1.png")
    save(tmp_path / "train" / "b" / "1.png")
    save(tmp_path / name / "b" / "1.png", GREEN)
    source = image_folder.load(str(tmp_path), 4, 3)
    assert source.test is not None
    assert (source.train.labels.tolist(), source.test.labels.tolist()) == ([0, 1], [1])
    assert source.test.images[0, :, 0, 0].tolist() == list(GREEN)


def test_a_folder_that_is_wrong_is_named(tmp_path):
    with pytest.raises(UserError, match=r"data\.path=.*nowhere: no such folder"):
        image_folder.load(str(tmp_path / "nowhere"), 4, 3)
    with pytest.raises(UserError, match="no class folders in"):
        image_folder.load(str(tmp_path), 4, 3)
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"no image in .*a; allowed: \.jpg"):
        image_folder.load(str(tmp_path), 4, 3)


def test_a_test_class_that_was_never_trained_is_named(tmp_path):
    save(tmp_path / "train" / "a" / "1.png")
    save(tmp_path / "test" / "zebra" / "1.png")
    with pytest.raises(UserError, match=r"zebra is no class of the training part: a"):
        image_folder.load(str(tmp_path), 4, 3)


@pytest.mark.parametrize("keep", [0, 40])
def test_an_unreadable_image_is_named(tmp_path, keep):
    save(tmp_path / "a" / "broken.png", size=(64, 64))
    file = tmp_path / "a" / "broken.png"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"cannot read image .*broken\.png"):
        image_folder.load(str(tmp_path), 4, 3)


def test_an_archive_gives_channels_first_and_labels_from_zero(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    source = npz.load(archive(tmp_path, images=images), 5, 3)
    assert source.train.images.tolist() == images.transpose(0, 3, 1, 2).tolist()
    assert source.train.labels.tolist() == [1, 0, 0, 1]
    assert (source.name, source.class_names, source.test) == ("pictures", ("3", "7"), None)


def test_an_archive_of_grey_images_with_a_test_part_ships_its_split(tmp_path):
    grey, test = np.full((4, 5, 6), 9, np.uint8), np.full((2, 5, 6), 8, np.uint8)
    source = npz.load(archive(tmp_path, images=grey, test_images=test, test_labels=np.array([7, 7])), 5, 1)
    assert source.test is not None
    assert source.train.images.shape == (4, 1, 5, 6)
    assert source.test.images.unique().tolist() == [8]
    assert source.test.labels.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, r"array `labels` is missing; found: \['images'\]"),
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
        npz.load(archive(tmp_path, **changes), 5, 3)


def test_a_file_that_is_missing_or_no_archive_is_named(tmp_path):
    with pytest.raises(UserError, match=r"data\.path=.*none\.npz: no such file"):
        npz.load(str(tmp_path / "none.npz"), 5, 3)
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "single.npy", np.zeros(3))
    for name in ("text.npz", "single.npy"):
        with pytest.raises(UserError, match=f"{name}: not a .npz file"):
            npz.load(str(tmp_path / name), 5, 3)
