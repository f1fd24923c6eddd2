"""lightly's transforms as the second opinion on the batched ones."""

import random

import numpy as np
import pytest
import torch

from fedbench.config.schema import AugmentationConfig
from fedbench.data import build_views


def smooth_image(channels: int) -> torch.Tensor:
    """A fixed random 32 x 32 image with structure at 4 pixels and unequal channels."""
    coarse = torch.rand(1, channels, 8, 8, generator=torch.Generator().manual_seed(2))
    image = torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")
    return (image * torch.tensor([250, 180, 120][:channels]).view(1, -1, 1, 1)).to(torch.uint8)


def statistics(name: str, channels: int) -> torch.Tensor:
    """Per view and channel: mean, standard deviation over all pixels, and spread of the image's mean."""
    batch = smooth_image(channels).expand(400, -1, -1, -1)
    views = build_views(AugmentationConfig(name=name), 32)(batch, torch.Generator().manual_seed(0))
    rows = [
        torch.stack([view.mean(dim=(0, 2, 3)), view.std(dim=(0, 2, 3)), view.mean(dim=(2, 3)).std(dim=0)])
        for view in views
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("channels", [1, 3])
def test_batched_and_lightly_views_agree_in_mean_and_spread(channels):
    difference = (statistics("batched", channels) - statistics("lightly", channels)).abs()
    # Of values with a standard deviation of 0.4 to 0.7; the largest difference measured is 0.05.
    assert difference.max() < 0.08, difference


def test_lightly_views_leave_the_global_random_states_as_they_were():
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    expected = torch.rand(()).item(), random.random(), np.random.random_sample()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    build_views(AugmentationConfig(name="lightly"), 32)(smooth_image(3), torch.Generator().manual_seed(0))
    assert (torch.rand(()).item(), random.random(), np.random.random_sample()) == expected


def test_lightly_views_do_not_depend_on_the_global_random_states():
    views = build_views(AugmentationConfig(name="lightly"), 32)
    batch, drawn = smooth_image(3).expand(6, -1, -1, -1), []
    for seed in (1, 2):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        drawn.append(views(batch, torch.Generator().manual_seed(0)))
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[1][1])
