"""The two sizes that are measured: the quick start's client, and the paper's encoder at a batch for a CPU."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fedbench.config import Config, load_config
from fedbench.config.load import read_yaml, resolve_file

BATCH = 128


class Size(NamedTuple):
    """A shipped preset, what differs from it, and the images of one client."""

    preset: str
    changes: Mapping[str, Any]
    samples: int

    def configure(self, *over: Mapping[str, Any]) -> Config:
        """On the CPU, with `over` on top."""
        tree = read_yaml(resolve_file(self.preset, "presets"))
        return load_config(tree, {"accelerator": "cpu"}, self.changes, *over)


QUICK_START = Size("digits", {}, 479)
VIT_TINY = Size("paper_vit_tiny", {"optimizer": {"batch_size": BATCH}, "federation": {"local_epochs": 1}}, BATCH)
SIZES = {
    "quick start (width 32, depth 4, 4x4 tokens, 14 steps of 64, 1 thread)": QUICK_START,
    "ViT-Tiny (width 192, depth 12, 8x8 tokens, 1 step of 128, 2 threads)": VIT_TINY,
}
