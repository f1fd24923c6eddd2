"""Split, subset, channels, size and hash of a loaded data set."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedbench.config.schema import DataConfig, EncoderConfig
from fedbench.data import Dataset, load_dataset
from fedbench.errors import UserError


def load(num_train: int | None = None, **encoder: int) -> Dataset:
    return load_dataset(DataConfig(num_train=num_train), EncoderConfig.model_validate(encoder))


def load_archive(folder: Path, images: np.ndarray, labels: list[int], **encoder: int) -> Dataset:
    np.savez(folder / "some.npz", images=images, labels=np.array(labels))
    config = DataConfig(name="npz", path=str(folder / "some.npz"))
    return load_dataset(config, EncoderConfig.model_validate(encoder))


def rows(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def test_digits_split_80_to_20_with_every_class_in_proportion():
    digits = load()
    assert (len(digits.train_labels), len(digits.test_labels)) == (1437, 360)
    ratio = digits.test_labels.bincount() / (digits.train_labels.bincount() + digits.test_labels.bincount())
    assert (ratio - 0.2).abs().max() < 0.005
    assert digits.train_images.dtype == torch.uint8
    assert digits.train_labels.dtype == torch.int64


def test_the_split_keeps_every_image_once(tmp_path):
    images = np.arange(40, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    data = load_archive(tmp_path, images, [0, 1] * 20)
    train, test = data.train_images[:, 0, 0, 0].tolist(), data.test_images[:, 0, 0, 0].tolist()
    assert sorted(train + test) == list(range(40))
    assert data.train_labels.tolist() == [value % 2 for value in train]
    assert data.test_labels.tolist() == [value % 2 for value in test]


def test_num_train_keeps_a_fixed_part_that_a_larger_num_train_contains():
    everything, some, more = load(), load(100), load(300)
    assert set(rows(some.train_images)) < set(rows(more.train_images)) < set(rows(everything.train_images))
    assert len(some.train_labels) == 100
    assert torch.equal(some.train_images, load(100).train_images)
    assert torch.equal(some.test_images, everything.test_images)


def test_num_train_keeps_images_and_labels_together():
    everything, some = load(), load(50)
    label_of = dict(zip(rows(everything.train_images), everything.train_labels.tolist(), strict=True))
    assert [label_of[row] for row in rows(some.train_images)] == some.train_labels.tolist()


def test_num_train_beyond_the_training_part_is_refused():
    with pytest.raises(UserError, match=r"data\.num_train=1438 exceeds .*allowed: 1 to 1437"):
        load(1438)


def test_one_channel_becomes_three_equal_ones():
    grey, colour = load(), load(in_channels=3)
    assert torch.equal(colour.train_images, grey.train_images.expand(-1, 3, -1, -1))


def test_three_channels_become_their_luma(tmp_path):
    images = np.zeros((10, 8, 8, 3), np.uint8)
    images[...] = (200, 100, 30)
    data = load_archive(tmp_path, images, [0, 1] * 5, in_channels=1)
    assert data.train_images.unique().item() == pytest.approx(0.299 * 200 + 0.587 * 100 + 0.114 * 30, abs=1)


def test_another_size_is_reached_as_pil_does_it_with_antialias(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10, 20, 12, 3), dtype=np.uint8)
    data = load_archive(tmp_path, images, [0, 1] * 5, in_channels=3)
    resized = [Image.fromarray(image).resize((8, 8), Image.Resampling.BILINEAR) for image in images]
    expected = np.stack([np.asarray(image) for image in resized]).transpose(0, 3, 1, 2).astype(int)
    actual = torch.cat([data.train_images, data.test_images]).int().numpy()
    for image in actual:  # one rounding apart
        assert min(np.abs(image - other).max() for other in expected) <= 1


def test_an_image_folder_becomes_a_data_set(tmp_path):
    for name in ("cat", "dog"):
        for part, count in (("train", 3), ("test", 2)):
            for index in range(count):
                (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (9, 9), (index, 0, 0)).save(tmp_path / part / name / f"{index}.png")
    data = load_dataset(DataConfig(name="image_folder", path=str(tmp_path)), EncoderConfig(in_channels=3))
    assert data.class_names == ("cat", "dog")
    assert data.train_images.shape == (6, 3, 8, 8)
    assert data.test_labels.tolist() == [0, 0, 1, 1]


def test_one_class_and_classes_of_one_image_are_refused(tmp_path):
    images = np.zeros((10, 8, 8), np.uint8)
    with pytest.raises(UserError, match=r"some\.npz has 1 class; allowed: 2"):
        load_archive(tmp_path, images, [4] * 10)
    with pytest.raises(UserError, match=r"some\.npz cannot be split 80/20 by class"):
        load_archive(tmp_path, images, [0] * 9 + [1])


def test_the_hash_is_stable_and_changes_with_one_pixel_one_label_or_the_shape():
    digits = load(20)
    assert len(digits.content_hash) == 64
    assert digits.content_hash == load(20).content_hash
    pixel, label = digits.train_images.clone(), digits.test_labels.clone()
    pixel[3, 0, 2, 5] += 1
    label[-1] += 1
    others = [
        replace(digits, train_images=pixel),
        replace(digits, test_labels=label),
        replace(digits, train_images=digits.train_images.view(20, 1, 4, 16)),
        load(21),
    ]
    assert len({data.content_hash for data in [digits, *others]}) == 5
