"""What a local step of ViT-Tiny costs: FedSSL against LW-FedSSL, shared prefix, bf16, augmentation.

    python benchmarks/speed/steps.py [--repeats 3] [--batch 128]

Aims: LW-FedSSL @v3 with the frozen blocks run once for all branches at least 1.9x as fast as with three branches
that run them each, on average over its 12 stages; FedSSL's step at least 5x the mean @v3 step; bf16 at least 1.8x;
augmentation at most 3 % of a FedSSL step. Steps that are compared take turns; every figure is a median.
"""

import argparse
from collections.abc import Callable
from statistics import mean, median
from time import perf_counter

import torch
from sizes import BATCH, VIT_TINY

from fedbench.config import Config
from fedbench.data import build_views
from fedbench.federation.experiment import check
from fedbench.metering.step import trace_step
from fedbench.training.local import LocalTask, build_fabric
from fedbench.training.model import build_model
from fedbench.training.visit import VisitHooks

IMAGE = (3, 32, 32)


def configure(strategy: str, batch_size: int, precision: str = "32-true") -> Config:
    """The paper's encoder and heads."""
    run = {"strategy": strategy, "precision": precision, "optimizer": {"batch_size": batch_size}}
    return VIT_TINY.configure(run)


class Step:
    """A client's local step at a stage, ready to be repeated."""

    def __init__(self, config: Config, stage: int, shared: bool = True) -> None:
        strategy, mechanisms, plans, _ = check(config)
        plan, batch_size = plans[stage - 1], config.optimizer.batch_size
        model = build_model(config, plan.depth)
        images = torch.randint(0, 256, (batch_size, *IMAGE), dtype=torch.uint8)
        views = build_views(config.augmentation, IMAGE[-1])
        self.task = LocalTask(model, plan.trained_groups, (strategy, *mechanisms), config.optimizer, views, images)
        self.flops = trace_step(self.task, batch_size, IMAGE, config.precision).flops
        model.rebuild_target()
        received = {key: value.detach().clone() for key, value in model.online_state().items()}
        self.task.received = self.task.received.renewed(received)
        VisitHooks(self.task, stage, same_stage=False, kept={}).begin()
        if not shared:
            for encoder in self.task.encoders:
                encoder.prefix = None
        self.fabric = build_fabric(config.precision, images.device)
        self.optimizer = self.task.configure_optimizers()
        self.batch = torch.arange(batch_size)

    def __call__(self) -> None:
        """As in `training.local.fit`."""
        with self.fabric.autocast():
            loss = self.task.training_step(self.batch)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        self.optimizer.step()
        self.task.method.update_target()

    def augment(self) -> None:
        """The step's two views alone."""
        self.task.views(self.task.images[self.batch], self.task.generator)


def in_turn(repeats: int, *actions: Callable[[], None]) -> list[float]:
    """Median seconds of each action; the first time warms up."""
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(repeats + 1):
        for action, seconds in zip(actions, times, strict=True):
            start = perf_counter()
            action()
            seconds.append(perf_counter() - start)
    return [median(seconds[1:]) for seconds in times]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    layerwise = configure("lw_fedssl@v3", asked.batch)
    end_to_end = configure("fedssl", asked.batch)

    print("| stage | three branches ms | shared prefix ms | ratio | GFLOPs |")
    print("| ----- | ----------------: | ---------------: | ----: | -----: |")
    rows, whole = [], []
    fedssl = Step(end_to_end, 1)
    for stage in range(1, 13):
        apart, shared = Step(layerwise, stage, shared=False), Step(layerwise, stage)
        beside = [fedssl] if stage in (1, 6, 12) else []
        a, s, *f = in_turn(asked.repeats, apart, shared, *beside)
        rows.append((a, s, shared.flops))
        whole += f
        print(
            f"| {stage} | {1000 * a:.0f} | {1000 * s:.0f} | {a / s:.2f} | {shared.flops / 1e9:.0f} |", flush=True
        )
    a, s, flops = (mean(column) for column in zip(*rows, strict=True))
    f = mean(whole)
    print(f"| FedSSL | | {1000 * f:.0f} | | {fedssl.flops / 1e9:.0f} |")
    gain = mean(row[0] / row[1] for row in rows)
    print(f"\nthree branches / shared prefix: {a / s:.2f}; mean of the stages' ratios {gain:.2f}")
    print(f"FedSSL / LW-FedSSL @v3: time {f / s:.2f}, FLOPs {fedssl.flops / flops:.2f}")

    half = Step(configure("fedssl", asked.batch, "bf16-mixed"), 1)
    full, mixed, views = in_turn(asked.repeats, fedssl, half, fedssl.augment)
    print(f"bf16-mixed: {1000 * mixed:.0f} ms, fp32 {1000 * full:.0f} ms, ratio {full / mixed:.2f}")
    print(f"augmentation: {1000 * views:.0f} ms, {100 * views / full:.1f} % of the fp32 step")


if __name__ == "__main__":
    main()
