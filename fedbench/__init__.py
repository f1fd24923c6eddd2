"""fedbench: a benchmark harness for federated self-supervised learning."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedbench.pretrained import PretrainedEncoder

__version__ = "0.1.0"


def load_encoder(path: str | Path) -> "PretrainedEncoder":
    """The encoder of a finished run as a torch module in eval mode: images in, features out.

    `path` is the run directory, or the encoder.safetensors in it. The module takes images (B, C, H, W) of the
    run's size, uint8 or floating point in [0, 1], and normalises them itself.

    Raises:
        UserError: where there is no finished run, or its files are damaged.
    """
    from fedbench import pretrained  # imports torch

    return pretrained.load_encoder(path)
