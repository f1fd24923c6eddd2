"""What a codec costs a client's visit: to unpack the whole encoder as it comes down, and to pack it on its way up.

    python benchmarks/speed/codecs.py [--repeats 7]

Beside it stands the client's training at the same size; all wall time, one thread at the quick start's size and
two at ViT-Tiny's. Printed are milliseconds: median and range; and bytes of values both ways, 1 without a codec.
"""

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
from sizes import SIZES, Size

from fedbench.config import Config
from fedbench.data import build_views
from fedbench.encoders.tensor_groups import StateDict, select
from fedbench.federation import Way, load_mechanisms
from fedbench.federation.dispatch import specs_by_group
from fedbench.federation.shipment import describe
from fedbench.federation.wire import Wire
from fedbench.training.local import LocalTask, build_fabric, fit
from fedbench.training.model import build_model

CODECS: dict[str, dict[str, Any]] = {
    "8 bit": {"quantise": True},
    "4 bit": {"quantise": {"download": 4, "upload": 4}},
    "fp16": {"cast": True},
    "top 10 %": {"top_k": True},
    "top 1 %": {"top_k": {"download": 0.01, "upload": 0.01}},
    "random 10 %": {"random_k": True},
    "PowerSGD 2": {"low_rank": True},
    "top 10 %, 8 bit": {"top_k": True, "quantise": True},
}


def timed(work: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds of each time, but for the first."""
    times = []
    for _ in range(repeats + 1):
        start = perf_counter()
        work()
        times.append(1000 * (perf_counter() - start))
    return times[1:]


def words(times: list[float]) -> str:
    """Median and range."""
    return f"{median(times):.1f} ms ({min(times):.1f} to {max(times):.1f})"


def training(config: Config, samples: int, repeats: int) -> list[float]:
    """Of one client's visit."""
    model = build_model(config, config.encoder.depth)
    images = torch.randint(0, 256, (samples, *config.encoder.image_shape), dtype=torch.uint8)
    views = build_views(config.augmentation, config.encoder.image_size)
    task = LocalTask(model, frozenset(specs_by_group(describe(model))), (), config.optimizer, views, images)
    fabric = build_fabric(config.precision, torch.device("cpu"))
    indices = torch.arange(samples)
    return timed(lambda: fit(fabric, task, indices, config.federation.local_epochs, config, 0), repeats)


class Payloads:
    """Of the whole encoder, both ways."""

    def __init__(self, config: Config, codec: dict[str, Any]) -> None:
        model = build_model(config, config.encoder.depth)
        self.wire = Wire(load_mechanisms({"name": "fedssl", **codec}))
        self.groups, state = specs_by_group(describe(model)), model.online_state()
        self.states = {group: select(state, {group}) for group in self.groups}
        self.down = {group: self._pack(group, "download") for group in self.groups}

    def _pack(self, group: str, direction: Any) -> StateDict:
        return self.wire.pack(group, self.states[group], self.groups[group], Way(direction), 0)

    def visit(self) -> None:
        """What a client does."""
        for group, specs in self.groups.items():
            self.wire.unpack(group, self.down[group], specs, Way("download"))
            self._pack(group, "upload")

    @property
    def share(self) -> float:
        """Bytes of values, of those without a codec."""
        packed = sum(
            spec.nbytes
            for direction in ("download", "upload")
            for group, specs in self.groups.items()
            for spec in self.wire.specs(group, specs, Way(direction)).values()  # type: ignore[arg-type]
        )
        return packed / (2 * sum(spec.nbytes for specs in self.groups.values() for spec in specs.values()))


def measure(name: str, size: Size, repeats: int) -> None:
    """Print a table."""
    config = size.configure()
    torch.set_num_threads(config.threads)
    train = training(config, size.samples, repeats)
    print(f"{name}: training {words(train)}")
    print("| codec | bytes | of a visit, ms | share of training |\n|---|--:|--:|--:|")
    for codec, section in CODECS.items():
        payloads = Payloads(config, section)
        times = timed(payloads.visit, repeats)
        share = median(times) / median(train)
        print(f"| {codec} | {payloads.share:.3f} | {words(times)} | {share:.1%} |", flush=True)


def main() -> None:
    """Both sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    for name, size in SIZES.items():
        measure(name, size, asked.repeats)


if __name__ == "__main__":
    main()
