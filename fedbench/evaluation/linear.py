"""Protocol `linear`: a linear classifier on frozen features; the last epoch counts, whatever the test says."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from fedbench.config.schema import ProbeConfig
from fedbench.data import Dataset
from fedbench.encoders import Encoder
from fedbench.evaluation.features import extract_features
from fedbench.random import generator


def linear_probe(encoder: Encoder, dataset: Dataset, config: ProbeConfig, seed: int) -> dict[str, float]:
    """Train on `dataset.probe_part`, score on the test split.

    Returns:
        `linear_top1`, `linear_per_class_mean`, `linear_macro_precision`, `_recall`, `_f1`, as fractions.
    """
    learned = dataset.probe_part
    train, test = (extract_features(encoder, x) for x in (learned.images, dataset.test_images))
    mean, std = train.mean(0), train.std(0).clamp_min(1e-6)  # of the training split only
    num_classes = len(dataset.class_names)
    labels = learned.labels.to(train.device)
    classifier = fit_linear((train - mean) / std, labels, num_classes, config, seed)
    with torch.no_grad():
        logits = classifier((test - mean) / std)
    return scores(logits.cpu(), dataset.test_labels, num_classes)


def fit_linear(
    features_ND: Tensor, labels_N: Tensor, num_classes: int, config: ProbeConfig, seed: int
) -> nn.Linear:
    """Softmax regression from zero weights: AdamW, cosine decay to zero over all steps."""
    classifier = nn.Linear(features_ND.shape[1], num_classes, device=features_ND.device)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.AdamW(
        classifier.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
    )
    steps_per_epoch = -(-len(labels_N) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs * steps_per_epoch)
    shuffle = generator(seed, "probe")
    for _ in range(config.epochs):
        for batch in torch.randperm(len(labels_N), generator=shuffle).split(config.batch_size):
            loss = F.cross_entropy(classifier(features_ND[batch]), labels_N[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier


def scores(logits_NK: Tensor, labels_N: Tensor, num_classes: int) -> dict[str, float]:
    """Top-1, mean over classes of their recall, and macro precision, recall and F1."""
    metrics = {
        "top1": MulticlassAccuracy(num_classes, average="micro"),
        "per_class_mean": MulticlassAccuracy(num_classes, average="macro"),
        "macro_precision": MulticlassPrecision(num_classes, average="macro"),
        "macro_recall": MulticlassRecall(num_classes, average="macro"),
        "macro_f1": MulticlassF1Score(num_classes, average="macro"),
    }
    return {f"linear_{name}": metric(logits_NK, labels_N).item() for name, metric in metrics.items()}
