"""Protocols `linear` and `few_label_*`: a linear classifier on frozen features; the last epoch counts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbench.config.schema import Config, ProbeConfig
from fedbench.evaluation.candidate import Candidate
from fedbench.random import generator


def linear(candidate: Candidate, config: Config) -> Tensor:
    """Classes (N,) that a classifier trained on all labels gives the test images."""
    return classify(candidate, torch.arange(len(candidate.fit_labels)), config)


def few_label(candidate: Candidate, config: Config, percent: int) -> Tensor:
    """The same, trained on the labels of `percent` of the images."""
    labelled = few_labels(candidate.fit_labels, candidate.num_classes, percent, config.seed)
    return classify(candidate, labelled, config)


def classify(candidate: Candidate, labelled_M: Tensor, config: Config) -> Tensor:
    """Classes (N,) of the test images, learnt from the labels of the images with the indices `labelled_M`."""
    fit, test = candidate.standardised_features
    labels = candidate.fit_labels[labelled_M].to(fit.device)
    fit = fit[labelled_M.to(fit.device)]
    classifier = fit_linear(fit, labels, candidate.num_classes, config.probe, config.seed)
    with torch.no_grad():
        return classifier(test).argmax(1)


def few_labels(labels_N: Tensor, num_classes: int, percent: int, seed: int) -> Tensor:
    """Sorted indices of a labelled subset: the same number of every class, at least one.

    As SimCLR (arXiv:2002.05709, Sec. 4.2): 1 % of N labels over K classes is N / K / 100 of each, rounded. A class
    with fewer gives all it has. 1 % is a part of 10 %, and all strategies of a seed get the same images.
    """
    wanted = max(1, round(len(labels_N) * percent / 100 / num_classes))
    order = torch.randperm(len(labels_N), generator=generator(seed, "few_label"))
    chosen = [order[labels_N[order] == number][:wanted] for number in range(num_classes)]
    return torch.cat(chosen).sort().values


def zero_linear(num_features: int, num_classes: int, device: torch.device) -> nn.Linear:
    """A classifier whose weights are zero; nothing random is drawn for it."""
    classifier: nn.Linear = nn.utils.skip_init(nn.Linear, num_features, num_classes, device=device)
    for parameter in classifier.parameters():
        nn.init.zeros_(parameter)
    return classifier


def fit_linear(
    features_ND: Tensor, labels_N: Tensor, num_classes: int, config: ProbeConfig, seed: int
) -> nn.Linear:
    """Softmax regression from zero weights: AdamW, cosine decay to zero over all steps."""
    classifier = zero_linear(features_ND.shape[1], num_classes, features_ND.device)
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
