"""Protocol `finetune`: the encoder is trained too, with all labels ([LW] Sec. 4.1); the last epoch counts.

Of an untrained encoder this is supervised training from scratch.
"""

import copy

import torch
import torch.nn.functional as F
from lightly.utils.scheduler import CosineWarmupScheduler
from torch import Tensor, nn
from torch.utils.data import BatchSampler, RandomSampler
from torchvision.transforms.v2 import RandAugment

from fedbench.config.schema import Config, FinetuneConfig
from fedbench.data import normalize
from fedbench.evaluation.candidate import Candidate
from fedbench.evaluation.features import extract_features
from fedbench.evaluation.linear import zero_linear
from fedbench.random import generator, stream


def finetune(candidate: Candidate, config: Config) -> Tensor:
    """Classes (N,) of the test images, by a copy of the encoder, trained with a linear classifier on top."""
    encoder = copy.deepcopy(candidate.encoder).requires_grad_(True)
    device = next(encoder.parameters()).device
    classifier = zero_linear(encoder.feature_dim, candidate.num_classes, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(config.seed, "finetune", "augment"))  # RandAugment draws from the global stream
        model = nn.Sequential(encoder, classifier).train()
        _train(model, candidate, config.evaluation.finetune, generator(config.seed, "finetune", "shuffle"))
    with torch.no_grad():
        return classifier(extract_features(encoder, candidate.test_images)).argmax(1)


def _train(model: nn.Module, candidate: Candidate, config: FinetuneConfig, shuffle: torch.Generator) -> None:
    """AdamW; the learning rate rises linearly over the first epochs, then falls as a cosine to zero."""
    batches = _batches(len(candidate.fit_labels), config.batch_size, shuffle)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    steps = (config.warmup_epochs * len(batches), config.epochs * len(batches))
    schedule = CosineWarmupScheduler(optimizer, *steps, end_value=0.0)
    augment = RandAugment(config.num_ops, config.magnitude)
    for _ in range(config.epochs):
        for batch in batches:
            images, labels = _augmented(candidate, batch, augment, next(model.parameters()).device)
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _batches(num_samples: int, batch_size: int, shuffle: torch.Generator) -> BatchSampler:
    """Indices, shuffled anew every epoch; an incomplete last batch is dropped: BatchNorm cannot use one sample."""
    sampler = RandomSampler(range(num_samples), generator=shuffle)
    return BatchSampler(sampler, min(batch_size, num_samples), drop_last=True)


def _augmented(
    candidate: Candidate, batch: list[int], augment: nn.Module, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Normalised images (B, C, H, W), each with operations of its own, and their labels (B,)."""
    images = torch.stack([augment(image) for image in candidate.fit_images[batch]])
    return normalize(images.to(device).float() / 255), candidate.fit_labels[batch].to(device)
