"""Local training through the harness costs at most 1.05x a bare loop at ViT-Tiny, 1.15x at the quick start's size.

    python benchmarks/speed/local_training.py [--repeats 7]

Both train the same FedSSL client (MoCo v3, fp32) in turn; the figure is the median of the ratios of neighbours.
"""

import argparse
from statistics import median
from time import perf_counter

import torch
from bare import bare_fit
from sizes import SIZES

from fedbench.config import Config
from fedbench.data import build_views
from fedbench.federation import StagePlan
from fedbench.training.local import LocalTask, build_fabric, fit
from fedbench.training.model import build_model


def ratios(config: Config, num_samples: int, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of the bare loop, and of the harness, in turn."""
    torch.set_num_threads(config.threads)
    encoder = config.encoder
    shape = (num_samples, encoder.in_channels, encoder.image_size, encoder.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    indices = torch.arange(num_samples)
    views = build_views(config.augmentation, encoder.image_size)
    bare, model = (build_model(config, encoder.depth) for _ in range(2))
    task = LocalTask(
        model, StagePlan.end_to_end(encoder.depth).trained_groups, (), config.optimizer, views, images
    )
    fabric = build_fabric(config.precision, images.device)
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(repeats + 2):
        start = perf_counter()
        bare_fit(bare, images, indices, views, config, number)
        middle = perf_counter()
        fit(fabric, task, indices, config.federation.local_epochs, config, number)
        end = perf_counter()
        if number > 1:  # the first two warm up
            times[0].append(middle - start)
            times[1].append(end - middle)
    return times


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    for name, size in SIZES.items():
        bare, harness = ratios(size.configure(), size.samples, repeats)
        pairs = [ours / theirs for ours, theirs in zip(harness, bare, strict=True)]
        print(
            f"{name}: bare {1000 * median(bare):.1f} ms, harness {1000 * median(harness):.1f} ms, "
            f"ratio {median(pairs):.3f} ({min(pairs):.3f} to {max(pairs):.3f})"
        )


if __name__ == "__main__":
    main()
