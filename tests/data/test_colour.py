"""Each colour operation against torchvision's, image by image, with another parameter for every image."""

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from fedbench.data.views import colour

TOLERANCE = 2e-6  # float32 rounding of values in [0, 1]; torchvision orders the sums differently
PAIRS = [
    (colour.brightness, tv.adjust_brightness, (0.0, 0.6, 1.0, 1.7)),
    (colour.contrast, tv.adjust_contrast, (0.0, 0.6, 1.0, 1.7)),
    (colour.saturation, tv.adjust_saturation, (0.0, 0.6, 1.0, 1.7)),
    (colour.hue, tv.adjust_hue, (-0.5, -0.07, 0.0, 0.31)),
]


def images(channels: int = 3) -> torch.Tensor:
    """Four images of 5 x 7 noise; the first also has black, white, grey, pure colours and ties."""
    images_BCHW = torch.rand(4, channels, 5, 7, generator=torch.Generator().manual_seed(1))
    special = [(0, 0, 0), (1, 1, 1), (0.3, 0.3, 0.3), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]
    ties = [
        (1, 1, 0),
        (1, 0, 1),
        (0.2, 0.7, 0.7),
        (0.7, 0.2, 0.7),
        (0.7, 0.7, 0.2),
        (0.7, 0.2, 0.2),
        (0.2, 0.7, 0.2),
    ]
    images_BCHW[0, :, 0] = torch.tensor(special, dtype=torch.float32).T[:channels]
    images_BCHW[0, :, 1] = torch.tensor(ties, dtype=torch.float32).T[:channels]
    return images_BCHW


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("ours", "theirs", "parameters"), PAIRS)
def test_a_colour_change_equals_torchvisions_on_every_image_of_the_batch(ours, theirs, parameters, channels):
    for shift in range(4):  # every parameter meets every image
        turned = parameters[shift:] + parameters[:shift]
        actual = ours(images(channels), torch.tensor(turned))
        expected = torch.stack([theirs(image, p) for image, p in zip(images(channels), turned, strict=True)])
        torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


def test_grayscale_equals_torchvisions_where_it_is_on_and_changes_no_bit_elsewhere():
    actual = colour.grayscale(images(), torch.tensor([True, False, False, True]))
    expected = tv.rgb_to_grayscale(images(), num_output_channels=3)
    torch.testing.assert_close(actual[[0, 3]], expected[[0, 3]], atol=TOLERANCE, rtol=0)
    assert torch.equal(actual[1:3], images()[1:3])


@pytest.mark.parametrize("channels", [1, 3])
def test_solarize_equals_torchvisions_where_it_is_on_and_changes_no_bit_elsewhere(channels):
    actual = colour.solarize(images(channels), torch.tensor([True, False, True, False]))
    expected = tv.solarize(images(channels), threshold=0.5)
    assert torch.equal(actual[::2], expected[::2])
    assert torch.equal(actual[1::2], images(channels)[1::2])


def test_solarize_by_hand_inverts_from_one_half_upwards():
    image = torch.tensor([0.0, 0.4, 0.5, 0.6, 1.0]).view(1, 1, 1, 5)
    expected = torch.tensor([0.0, 0.4, 0.5, 0.4, 0.0])
    torch.testing.assert_close(colour.solarize(image, torch.tensor([True])).flatten(), expected)


def test_a_third_of_a_turn_makes_red_green_and_orange_spring_green():
    image = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.5, 0.0]]).T.reshape(1, 3, 1, 2)
    expected = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.5]]).T.reshape(1, 3, 1, 2)
    torch.testing.assert_close(colour.hue(image, torch.tensor([1 / 3])), expected)


@pytest.mark.parametrize("change", [colour.saturation, colour.hue])
def test_one_channel_has_no_colour_to_change(change):
    assert torch.equal(change(images(1), torch.tensor([0.1, 0.2, 0.3, 0.4])), images(1))


def test_no_colour_change_writes_into_its_input():
    before = images()
    for change, _, parameters in PAIRS:
        change(before, torch.tensor(parameters))
    colour.grayscale(before, torch.ones(4, dtype=torch.bool))
    colour.solarize(before, torch.ones(4, dtype=torch.bool))
    assert torch.equal(before, images())
