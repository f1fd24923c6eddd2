"""Protocol `retrieval`: of two towers on two renderings, one finds the image that the other sees (R@1)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fedbench.config.schema import Config
from fedbench.evaluation.candidate import Candidate

CHUNK = 256  # queries at a time: bounds the similarities, chunk x images


def retrieval(candidate: Candidate, config: Config) -> Tensor:
    """Nearest test images by cosine, (2N,): the second tower's for each of the first one's, then the reverse."""
    first, second = (F.normalize(half, dim=1) for half in candidate.features[1].chunk(2, dim=1))
    return torch.cat([_nearest(first, second), _nearest(second, first)])


def recall(nearest_2N: Tensor) -> dict[str, float]:
    """R@1, the share of images that were found: `top1` of both directions, and of each."""
    forth, back = nearest_2N.chunk(2)
    own = torch.arange(len(forth))
    found = {"first_to_second": forth == own, "second_to_first": back == own}
    shares = {name: hits.float().mean().item() for name, hits in found.items()}
    return {"top1": sum(shares.values()) / 2, **shares}


def _nearest(queries_ND: Tensor, images_ND: Tensor) -> Tensor:
    return torch.cat([(part @ images_ND.T).argmax(1) for part in queries_ND.split(CHUNK)])
