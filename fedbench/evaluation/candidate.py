"""Who is judged, and on what: an encoder, the images with labels to learn from, the images to be scored on.

Shapes: N images, C channels, D features.
"""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from fedbench.config.schema import Config
from fedbench.data import Dataset
from fedbench.encoders import Encoder, initial_encoder, num_blocks
from fedbench.evaluation.features import extract_features


@dataclass(frozen=True, eq=False)
class Candidate:
    """An encoder, on its device, and the data that judge it.

    Attributes:
        fit_images, fit_labels: what a classifier may learn from; uint8 (N, C, H, W) and int64 (N,).
        test_images, test_labels: what it is scored on, and nothing else.
    """

    encoder: Encoder
    fit_images: Tensor
    fit_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int

    @classmethod
    def on(cls, encoder: Encoder, dataset: Dataset) -> "Candidate":
        """Learn from `dataset.probe_part`, be scored on the test split."""
        return cls(
            encoder, *dataset.probe_part, dataset.test_images, dataset.test_labels, len(dataset.class_names)
        )

    @cached_property
    def features(self) -> tuple[Tensor, Tensor]:
        """Of the frozen encoder: (N, D) of the images to learn from, (N, D) of the test images."""
        return extract_features(self.encoder, self.fit_images), extract_features(self.encoder, self.test_images)

    @cached_property
    def standardised_features(self) -> tuple[Tensor, Tensor]:
        """The same with mean 0 and deviation 1 over the images to learn from, whose labels that needs not."""
        fit, test = self.features
        mean, std = fit.mean(0), fit.std(0).clamp_min(1e-6)
        return (fit - mean) / std, (test - mean) / std


def untrained_encoder(config: Config) -> Encoder:
    """The whole encoder as a run of this configuration begins: the floor of every protocol."""
    return initial_encoder(config.encoder, num_blocks(config.encoder), config.seed)
