"""What a partition did: samples and classes of each client, how far clients differ, and the picture of it.

Shapes: M clients, K classes, one more if there are images without labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedbench.data.dataset import Dataset

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW = 20  # clients or classes of which each is named; of more, some are
NAME_LETTERS = 24  # of a class below the picture


@dataclass(frozen=True, eq=False)
class Mixture:
    """`counts`: samples of each client in each class, (M, K); `class_names`: K."""

    counts: Tensor
    class_names: tuple[str, ...]

    @property
    def sizes(self) -> Tensor:
        """Samples of each client, (M,)."""
        return self.counts.sum(dim=1)

    @property
    def heterogeneity(self) -> float:
        """mean_n 1/2 sum_k |p_n(k) - p(k)|: the total variation distance of a client's classes to those of all."""
        p_MK = self.counts / self.sizes[:, None]
        p_K = self.counts.sum(dim=0) / self.counts.sum()
        return float((p_MK - p_K).abs().sum(dim=1).mean() / 2)


def mixture(dataset: Dataset, clients: Sequence[Tensor]) -> Mixture:
    """Counted over the clients' indices into the training images."""
    labels, names = dataset.train_labels, dataset.class_names
    if labels.min() < 0:
        labels, names = labels + 1, ("without label", *(names if labels.max() >= 0 else ()))
    counts = [labels[indices].bincount(minlength=len(names)) for indices in clients]
    return Mixture(torch.stack(counts), names)


def describe(mixed: Mixture) -> str:
    """The statistics, a line for each."""
    lines = [f"samples per client  {_spread(mixed.sizes)}, {int(mixed.sizes.sum())} in all"]
    if len(mixed.class_names) > 1:
        held_M = (mixed.counts > 0).sum(dim=1)
        lines.append(f"classes per client  {_spread(held_M)}, {len(mixed.class_names)} in all")
        meaning = "mean total variation distance of a client's classes to those of all; 0: all alike"
        lines.append(f"heterogeneity       {mixed.heterogeneity:.3f} ({meaning})")
    return "\n".join(lines)


def _spread(numbers_M: Tensor) -> str:
    low, middle, high = np.quantile(numbers_M.numpy(), (0, 0.5, 1))
    return f"min {low:g}, median {middle:g}, max {high:g}"


def plot(mixed: Mixture, title: str, path: Path) -> None:
    """Clients x classes, shaded by the share of the client's samples, and the samples of each client."""
    from matplotlib.figure import Figure

    num_clients, num_classes = mixed.counts.shape
    height = min(max(2.6, 0.26 * num_clients + 1.6), 9.0)
    width = min(max(3.0, 0.36 * num_classes + 1.0), 9.0)
    figure = Figure(figsize=(width + 3.2, height), layout="constrained")
    shares, sizes = figure.subplots(1, 2, sharey=True, width_ratios=[width, 2.0])
    _draw_shares(shares, mixed)
    sizes.barh(range(num_clients), mixed.sizes.tolist(), color="#0072B2", height=0.8)
    sizes.set_xlabel("samples")
    sizes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(_literal(title), fontsize=10)
    figure.savefig(path, dpi=160)


def _draw_shares(axis: "Axes", mixed: Mixture) -> None:
    num_clients, num_classes = mixed.counts.shape
    shares_MK = 100 * mixed.counts / mixed.sizes[:, None]
    image = axis.imshow(shares_MK.numpy(), aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
    axis.figure.colorbar(image, ax=axis, location="left", label="% of the client's samples", pad=0.02)
    axis.set_ylabel("client")
    if num_clients <= FEW:
        axis.set_yticks(range(num_clients))
    if num_classes <= FEW:
        names = [_short(name) for name in mixed.class_names]
        axis.set_xticks(range(num_classes), names, rotation=45, ha="right", rotation_mode="anchor")
    else:
        axis.set_xlabel("class")


def _short(name: str) -> str:
    return _literal(name if len(name) <= NAME_LETTERS else name[: NAME_LETTERS - 1] + "\u2026")


def _literal(text: str) -> str:
    """So that matplotlib reads no mathematics in it."""
    return text.replace("$", r"\$")
