"""How good predicted classes are."""

from torch import Tensor
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)


def scores(predicted_N: Tensor, labels_N: Tensor, num_classes: int) -> dict[str, float]:
    """`top1`, `per_class_mean` (over classes of their recall), `macro_precision`, `_recall`, `_f1`: fractions."""
    metrics = {
        "top1": MulticlassAccuracy(num_classes, average="micro"),
        "per_class_mean": MulticlassAccuracy(num_classes, average="macro"),
        "macro_precision": MulticlassPrecision(num_classes, average="macro"),
        "macro_recall": MulticlassRecall(num_classes, average="macro"),
        "macro_f1": MulticlassF1Score(num_classes, average="macro"),
    }
    return {name: metric(predicted_N, labels_N).item() for name, metric in metrics.items()}
