"""How features lie: whether the views of an image stay together, images apart, and how many directions are used.

Alignment and uniformity are Wang and Isola's (2020, arXiv:2005.10242, Sec. 4.1), of features of length one; of
both, lower is better. Shapes: N images, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fedbench.data import Views
from fedbench.encoders import Encoder
from fedbench.evaluation.features import CHUNK, extract_features
from fedbench.federation.diagnostics import effective_rank
from fedbench.random import generator

LIMIT = 2000  # images, drawn by the seed: two million pairs, six thousand forward passes


def describe_features(encoder: Encoder, images: Tensor, views: Views, seed: int) -> dict[str, float]:
    """`alignment`, `uniformity` and `effective_rank` of the features of an encoder, which stays as it is.

    And the figures that its layers have of their own (`Ways.figures`).

    Args:
        images: uint8 (N, C, H, W); at most `LIMIT` of them are used.
        views: the augmentation whose pairs of views should lie together; it draws from a stream of `seed`.
    """
    order = torch.randperm(len(images), generator=generator(seed, "evaluation images"))
    chosen = images[order[:LIMIT]]
    with encoder.ways.noting() as noted:
        features = extract_features(encoder, chosen)
    first, second = _features_of_views(encoder, chosen, views, seed)
    return {
        "alignment": alignment(first, second),
        "uniformity": uniformity(features),
        "effective_rank": effective_rank(features),
        **encoder.ways.figures(noted),
    }


def alignment(first_ND: Tensor, second_ND: Tensor) -> float:
    """E ||f(x) - f(y)||^2 over the two views of each image: from 0, all alike, to 4."""
    return (F.normalize(first_ND, dim=1) - F.normalize(second_ND, dim=1)).square().sum(1).mean().item()


def uniformity(features_ND: Tensor) -> float:
    """log E exp(-2 ||f(x) - f(y)||^2) over pairs of images: 0 if all are alike; on a wide sphere down to about -4.

    NaN for fewer than two images.
    """
    distances = F.pdist(F.normalize(features_ND, dim=1))
    return distances.square().mul(-2).exp().mean().log().item()


@torch.no_grad()
def _features_of_views(encoder: Encoder, images: Tensor, views: Views, seed: int) -> tuple[Tensor, Tensor]:
    """Features (N, D) of the first and of the second views."""
    encoder.eval()
    device = next(encoder.parameters()).device
    draw = generator(seed, "evaluation views", device=device)
    pairs = [[encoder(view) for view in views(chunk.to(device), draw)] for chunk in images.split(CHUNK)]
    first, second = (torch.cat(features) for features in zip(*pairs, strict=True))
    return first, second
