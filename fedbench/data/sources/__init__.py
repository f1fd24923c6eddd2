"""Where images come from: one file per source, found by its name, with one function `load`.

`load(path, image_size, in_channels) -> Source`. Size and channels are what the run will use: a source may
deliver them at once to save memory (image_folder does) or leave the conversion to `load_dataset`.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Part:
    """Images uint8 (N, C, H, W), C = 1 or 3, and labels int64 (N,) in 0..K-1."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Source:
    """What a source delivers; `test` is None when it ships no split of its own."""

    name: str
    train: Part
    test: Part | None
    class_names: tuple[str, ...]
