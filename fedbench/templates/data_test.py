"""Mine can be split over clients, and its classes can be told apart."""

from pathlib import Path

from fedbench.config import load_config
from fedbench.data import load_dataset

FILE = str(Path(__file__).with_name("mine.py"))


def test_its_images_come_with_labels_for_both_splits() -> None:
    config = load_config({"data": FILE})
    dataset = load_dataset(config.data, config.encoder)
    assert len(dataset.train_images) == len(dataset.train_labels) > 0
    assert set(dataset.test_labels.tolist()) == set(range(len(dataset.class_names)))
