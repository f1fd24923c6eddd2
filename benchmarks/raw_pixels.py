"""What the protocols make of raw pixels: below this, an encoder has learnt nothing that is of use.

    python benchmarks/raw_pixels.py CONFIG [KEY=VALUE ...]

The same data, protocols and settings as a run of CONFIG, on images of the encoder's size whose pixels are the
features. Pixels are far more features than an encoder has, so try several of `probe.lr`.
"""

import sys
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from fedbench.config import load_config
from fedbench.config.load import read_yaml
from fedbench.config.words import read_words
from fedbench.data import load_dataset
from fedbench.encoders import Encoder
from fedbench.evaluation import evaluate


class Pixels(nn.Module):
    """(B, C, H, W) -> (B, C*H*W)."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Parameter(torch.zeros(()), requires_grad=False)  # tells the device

    def forward(self, images: Tensor) -> Tensor:
        """The pixels as they are."""
        return images.flatten(1)


def main() -> None:
    """Print top-1 of each protocol."""
    words = read_words(sys.argv[1:])
    if words.file is None:
        raise SystemExit(__doc__)
    config = load_config(read_yaml(Path(words.file)), words.single())
    torch.set_num_threads(config.threads)
    protocols = [name for name in config.evaluation.protocols if name != "finetune"]
    dataset = load_dataset(config.data, config.encoder)
    for name, value in evaluate(cast(Encoder, Pixels()), dataset, config, protocols).items():
        if name.endswith("top1"):
            print(f"{name} {100 * value:.1f}")


if __name__ == "__main__":
    main()
