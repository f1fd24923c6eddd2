"""The random part: what is drawn, that it is reproducible, that it never waits for the device."""

import colorsys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2

from fedbench.config.schema import AugmentationConfig
from fedbench.data import build_views, normalize
from fedbench.data.views import augment

OFF = {"min_scale": 1.0, "flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": (0, 0), "solarize": (0, 0)}


def images(count: int = 6, channels: int = 3, side: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def off_but(**changes: object) -> AugmentationConfig:
    return AugmentationConfig.model_validate(OFF | changes)


def test_normalize_maps_black_quarter_and_white_to_minus_two_minus_one_and_two():
    assert normalize(torch.tensor([0.0, 0.25, 1.0])).tolist() == [-2.0, -1.0, 2.0]


@pytest.mark.parametrize("name", ["batched", "lightly"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(name):
    views = build_views(AugmentationConfig(name=name), 16)
    first, again, other = (views(images(), seeded(seed)) for seed in (3, 3, 4))
    for view in (0, 1):
        assert torch.equal(first[view], again[view])
        assert not torch.isclose(first[view], other[view]).all(dim=(1, 2, 3)).any()


@pytest.mark.parametrize("name", ["batched", "lightly"])
@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_float32_of_the_asked_size_and_differ_from_each_other(name, channels):
    one, two = build_views(AugmentationConfig(name=name), 12)(images(5, channels), seeded(0))
    assert one.shape == two.shape == (5, channels, 12, 12)
    assert one.dtype == two.dtype == torch.float32
    assert max(one.abs().max(), two.abs().max()) <= 2 + 1e-5
    assert not torch.isclose(one, two).all(dim=(1, 2, 3)).any()


@pytest.mark.parametrize("name", ["batched", "lightly"])
def test_with_everything_off_both_views_are_the_normalised_image(name):
    for view in build_views(off_but(name=name), 16)(images(), seeded(0)):
        torch.testing.assert_close(view, normalize(images().float() / 255), atol=2e-5, rtol=0)


def test_every_sample_of_a_batch_draws_its_own_parameters():
    same = images(1).expand(8, -1, -1, -1)
    one, _ = build_views(off_but(jitter=1.0), 16)(same, seeded(0))
    assert len({tuple(view.flatten().tolist()) for view in one}) == 8


@pytest.mark.parametrize("name", ["batched", "lightly"])
@pytest.mark.parametrize("operation", ["blur", "solarize"])
@pytest.mark.parametrize("view", [0, 1])
def test_blur_and_solarize_follow_the_probability_of_their_own_view(name, operation, view):
    plain = normalize(images().float() / 255)
    chances = (1.0, 0.0) if view == 0 else (0.0, 1.0)
    views = build_views(off_but(name=name, **{operation: chances}), 16)(images(), seeded(0))
    assert (views[view] - plain).abs().mean(dim=(1, 2, 3)).max() > 0.1
    torch.testing.assert_close(views[1 - view], plain, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["flip", "grayscale"])
def test_a_probability_is_the_share_of_samples_that_are_changed(name):
    one, _ = build_views(off_but(**{name: 0.3}), 8)(images(2000, side=8), seeded(0))
    plain = normalize(images(2000, side=8).float() / 255)
    changed = ~torch.isclose(one, plain, atol=2e-5).all(dim=(1, 2, 3))
    assert abs(changed.float().mean() - 0.3) < 0.04  # 4 standard deviations


def test_jitter_is_drawn_within_its_strength_and_applied_with_its_probability():
    grey = torch.full((4000, 1, 2, 2), 100, dtype=torch.uint8)
    config = off_but(jitter=0.7, jitter_strength=0.5)
    one, _ = build_views(config, 2)(grey, seeded(0))  # contrast of a flat image changes nothing
    factor_B = (one[:, 0, 0, 0] * 0.25 + 0.5) / (100 / 255)
    changed_B = (factor_B - 1).abs() > 1e-5
    assert abs(changed_B.float().mean() - 0.7) < 0.03
    assert factor_B.min() == pytest.approx(0.8, abs=2e-3)
    assert factor_B.max() == pytest.approx(1.2, abs=2e-3)
    assert factor_B[changed_B].std() == pytest.approx(0.4 / 12**0.5, abs=5e-3)  # of a uniform of width 0.4


def test_jitter_turns_the_hue_and_scales_the_chroma_as_far_as_its_strength_says():
    flat = torch.tensor([120, 100, 80], dtype=torch.uint8).view(1, 3, 1, 1).expand(4000, -1, 2, 2)
    one, _ = build_views(off_but(jitter=1.0, jitter_strength=0.5), 2)(flat, seeded(0))
    colours = (one[:, :, 0, 0] * 0.25 + 0.5).tolist()
    hues = torch.tensor([colorsys.rgb_to_hsv(*colour)[0] for colour in colours]) - 30 / 360
    turns = (hues + 0.5) % 1 - 0.5
    assert (turns.min().item(), turns.max().item()) == pytest.approx((-0.05, 0.05), abs=1e-3)
    # Of a flat colour, max - min is scaled by all three factors: variances 0.4^2/12, 0.4^2/12 and 0.2^2/12.
    chroma = torch.tensor([max(colour) - min(colour) for colour in colours]) / (40 / 255)
    variance = (1 + 0.16 / 12) ** 2 * (1 + 0.04 / 12) - 1
    assert (chroma.mean().item(), chroma.std().item()) == pytest.approx((1, variance**0.5), abs=8e-3)


@pytest.mark.parametrize(("side", "min_scale"), [(32, 0.08), (8, 0.5)])
def test_crop_boxes_are_distributed_as_torchvisions(side, min_scale):
    count = 4000
    ours = augment.crop_boxes(torch.zeros(count, 1, side, side), min_scale, seeded(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draw = v2.RandomResizedCrop(side, scale=(min_scale, 1.0)).make_params
        drawn = [draw([torch.zeros(1, side, side)]) for _ in range(count)]
    theirs = torch.tensor([[box[key] for key in ("top", "left", "height", "width")] for box in drawn]).float()
    spread = theirs.std(dim=0)
    assert (ours.mean(dim=0) - theirs.mean(dim=0)).abs().lt(5 * spread * (2 / count) ** 0.5).all()
    assert (ours.std(dim=0) / spread - 1).abs().lt(0.06).all()
    assert torch.corrcoef(ours.T).sub(torch.corrcoef(theirs.T)).abs().max() < 0.08


def test_crop_boxes_lie_in_the_image_and_reach_all_four_of_its_borders():
    top, left, height, width = augment.crop_boxes(torch.zeros(3000, 1, 8, 8), 0.08, seeded(0)).unbind(dim=1)
    assert all(box.eq(box.round()).all() for box in (top, left, height, width))
    assert min(height.min(), width.min()) >= 1
    assert (top.min(), left.min(), (top + height).max(), (left + width).max()) == (0, 0, 8, 8)


@pytest.mark.parametrize("side", [8, 224])
def test_a_crops_sides_are_the_rounded_roots_of_what_was_drawn(monkeypatch, side):
    draws = torch.rand((2, 500, augment.CROP_ATTEMPTS), generator=seeded(2))
    monkeypatch.setattr(augment, "_rand", lambda shape, *_: draws if len(shape) == 3 else draws[..., 0])
    boxes = augment.crop_boxes(torch.zeros(500, 1, side, side), 0.1, seeded(0))
    areas, aspects = (0.1 + 0.9 * draws[0].double()) * side**2, (4 / 3) ** (2 * draws[1].double() - 1)
    for box, *attempts in zip(boxes.tolist(), areas.tolist(), aspects.tolist(), strict=True):
        shapes = [
            (round((area / by) ** 0.5), round((area * by) ** 0.5)) for area, by in zip(*attempts, strict=True)
        ]
        assert tuple(box[2:]) == next((shape for shape in shapes if max(shape) <= side), (side, side))


def test_a_box_that_never_fits_becomes_the_whole_image(monkeypatch):
    monkeypatch.setattr(augment, "_rand", lambda shape, like, generator: torch.full(shape, 0.99))
    boxes = augment.crop_boxes(torch.zeros(2, 1, 16, 16), 0.9, seeded(0))  # 0.99 of the area, aspect 4/3
    assert boxes.tolist() == [[0, 0, 16, 16]] * 2


@pytest.mark.parametrize(("side", "taps"), [(8, 3), (32, 3), (64, 7), (96, 9), (224, 23)])
def test_the_blur_has_an_odd_tenth_of_the_image_as_taps(side, taps):
    assert augment.kernel_size(side) == taps


class NoWaiting(TorchDispatchMode):
    """Fails at every operation that would make the host wait for a GPU."""

    WAITING = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "item",
        "unique",
        "lift_fresh",
        "is_nonzero",
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in str(func) for name in self.WAITING), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def test_batched_views_never_make_the_host_wait_for_the_device():
    views, batch, generator = build_views(AugmentationConfig(solarize=(0.2, 0.2)), 16), images(), seeded(0)
    with NoWaiting():
        views(batch, generator)
