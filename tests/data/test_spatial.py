"""Crop, flip and blur against torchvision's, image by image, at unsymmetric parameters."""

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from fedbench.data.views import spatial

BOXES = torch.tensor([[0, 0, 9, 11], [2, 3, 5, 4], [7, 1, 1, 6], [4, 9, 5, 2]])  # top, left, height, width
FLIPS = torch.tensor([True, False, True, False])


def images(channels: int = 3) -> torch.Tensor:
    return torch.rand(4, channels, 9, 11, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [3, 8, 21])
def test_a_resized_crop_equals_torchvisions_without_antialias_followed_by_its_flip(size):
    actual = spatial.resized_crop(images(), BOXES, FLIPS, size)
    for image, box, flip, view in zip(images(), BOXES.tolist(), FLIPS, actual, strict=True):
        expected = tv.resized_crop(image, *box, size=[size, size], antialias=False)
        expected = tv.horizontal_flip(expected) if flip else expected
        torch.testing.assert_close(view, expected, atol=5e-6, rtol=0)  # float32 pixel positions


def test_a_crop_reads_nothing_outside_its_box():
    image = torch.zeros(1, 1, 6, 6)
    image[0, 0, 2:4, 3:5] = 1
    view = spatial.resized_crop(image, torch.tensor([[2, 3, 2, 2]]), torch.tensor([False]), 7)
    torch.testing.assert_close(view, torch.ones(1, 1, 7, 7))


def test_the_whole_image_flipped_at_its_own_size_is_the_mirror_image():
    image = torch.arange(12.0).view(1, 1, 3, 4)[..., :3] / 12
    view = spatial.resized_crop(image, torch.tensor([[0, 0, 3, 3]]), torch.tensor([True]), 3)
    torch.testing.assert_close(view, image.flip(3))


@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_blur_equals_torchvisions_where_it_is_on_and_changes_no_bit_elsewhere(channels, kernel_size):
    sigmas, on = torch.tensor([0.1, 0.7, 1.3, 2.0]), torch.tensor([True, True, False, True])
    actual = spatial.gaussian_blur(images(channels), sigmas, on, kernel_size)
    for image, sigma, applied, view in zip(images(channels), sigmas.tolist(), on, actual, strict=True):
        expected = tv.gaussian_blur(image, [kernel_size] * 2, [sigma] * 2) if applied else image
        torch.testing.assert_close(view, expected, atol=2e-6 if applied else 0.0, rtol=0)


def test_a_blurred_point_by_hand_spreads_by_the_outer_product_of_the_kernel():
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 2] = 1
    side = 2.718281828 ** (-0.5 / 0.8**2)  # exp(-t^2 / (2 sigma^2)) at t = 1, sigma = 0.8
    kernel = torch.tensor([side, 1, side]) / (1 + 2 * side)
    view = spatial.gaussian_blur(image, torch.tensor([0.8]), torch.tensor([True]), 3)
    torch.testing.assert_close(view[0, 0, 1:4, 1:4], kernel[:, None] * kernel[None, :])
