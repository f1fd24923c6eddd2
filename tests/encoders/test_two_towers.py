"""Two towers against one, and the CLIP loss between them against naive loops."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fedbench.methods.transforms.two_towers import edges
from torch import Tensor, nn

from fedbench.config import Config, EncoderConfig, load_config
from fedbench.encoders import build_encoder, initial_encoder, outline
from fedbench.encoders.tensor_groups import by_group
from fedbench.errors import UserError
from fedbench.federation.dispatch import Dispatch
from fedbench.federation.experiment import prepare
from fedbench.federation.shipment import describe
from fedbench.losses import info_nce
from fedbench.metering.counting import forward_macs_by_group
from fedbench.training.model import build_model, freeze_all_but

VIT: dict[str, Any] = {"image_size": 8, "patch_size": 4, "width": 16, "depth": 3, "heads": 2}
SAME = {"name": "two_towers", "second": "colours"}


def vit(*transforms: Any, **keys: Any) -> EncoderConfig:
    return load_config({"encoder": {**VIT, **keys, "transforms": list(transforms)}}).encoder


def images(number: int = 5, channels: int = 1) -> Tensor:
    return torch.randn(number, channels, 8, 8, generator=torch.Generator().manual_seed(3))


def naive_clip(first: Tensor, second: Tensor, temperature: float) -> float:
    """Cross-entropy of rows and of columns of the table of cosines."""
    a, b = ([row / row.norm() for row in half] for half in (first, second))
    table = [[math.exp((x @ y).item() / temperature) for y in b] for x in a]
    size, total = len(a), 0.0
    for i in range(size):
        total -= math.log(table[i][i] / sum(table[i])) / 2
        total -= math.log(table[i][i] / sum(row[i] for row in table)) / 2
    return total / size


def clip(tiny: Callable[..., Config], *transforms: Any, **ssl: Any) -> Any:
    return build_model(tiny({"encoder": {"transforms": list(transforms)}}, ssl={"name": "clip", **ssl}), 3)


def test_the_loss_equals_its_naive_double(tiny: Callable[..., Config]) -> None:
    first, second = images(), images().roll(1, dims=3)
    for across in (False, True):
        model = clip(tiny, "two_towers", temperature=0.3, across_views=across)
        (a1, b1), (a2, b2) = (model.encoder(view).chunk(2, dim=1) for view in (first, second))
        pairs = [(a1, b2), (a2, b1)] if across else [(a1, b1), (a2, b2)]
        expected = sum(naive_clip(a, b, 0.3) for a, b in pairs) / 2
        assert model.training_step((first, second))["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_equal_towers_on_equal_views_have_the_loss_of_one_tower(tiny: Callable[..., Config]) -> None:
    tower, (first, second) = initial_encoder(vit(), 3, seed=0), (images(), images().flip(3))
    z1, z2 = tower(first), tower(second)
    for across in (False, True):
        model = clip(tiny, SAME, temperature=0.3, across_views=across)
        assert torch.equal(model.training_step((first, first))["loss"], info_nce(z1, z1, 0.3))
    both = model.training_step((first, second))["loss"]
    torch.testing.assert_close(both, (info_nce(z1, z2, 0.3) + info_nce(z2, z1, 0.3)) / 2)


def test_each_tower_computes_what_it_computes_alone_on_its_rendering() -> None:
    alone, both = initial_encoder(vit(), 3, seed=1), initial_encoder(vit("two_towers"), 3, seed=1)
    first, second = both(images()).chunk(2, dim=1)
    assert torch.equal(first, alone(images()))
    assert torch.equal(second, alone(edges(images())))
    for part in ("stem.second.", "blocks.1.second.", "norm.second."):
        other = initial_encoder(vit("two_towers"), 3, seed=1)
        with torch.no_grad():
            for key, weight in other.named_parameters():
                if key.startswith(part):
                    weight.mul_(2)
        assert torch.equal(other(images())[:, :16], first)
        assert not torch.equal(other(images())[:, 16:], second)


def test_edges_are_the_length_of_the_gradient() -> None:
    picture, found = images(2, channels=3), edges(images(2, channels=3))
    for image in range(2):
        for channel in range(3):
            for row in range(8):
                for column in range(8):
                    here = picture[image, channel, row, column].item()
                    down = picture[image, channel, row + 1, column].item() - here if row < 7 else 0.0
                    right = picture[image, channel, row, column + 1].item() - here if column < 7 else 0.0
                    assert found[image, channel, row, column].item() == pytest.approx(
                        math.hypot(down, right), abs=1e-5
                    )
    flat = torch.ones(1, 1, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(edges(flat).sum(), flat)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("before", [(), ("shared_mlp",)])
def test_every_group_has_twice_the_values(before: tuple[str, ...]) -> None:
    sizes = []
    for words in (before, (*before, "two_towers")):
        state = initial_encoder(vit(*words), 3, seed=1).state_dict()
        groups = by_group({f"encoder.{key}": value for key, value in state.items()})
        sizes.append({group: sum(value.numel() for value in part.values()) for group, part in groups.items()})
    assert sizes[1] == {group: 2 * size for group, size in sizes[0].items()}
    assert ("shared" in sizes[1]) == bool(before)


def test_the_kth_blocks_of_both_towers_are_trained_frozen_and_sent_together(tiny: Callable[..., Config]) -> None:
    config = tiny({"encoder": {"transforms": ["two_towers"]}}, ssl="clip", strategy="lw_fedssl")
    plan = prepare(config).plans[1]
    model = build_model(config, plan.depth)
    freeze_all_but(model, plan.trained_groups)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name.split(".")[1] for name in trained} == {"blocks", "norm"}
    assert {".".join(name.split(".")[2:4]) for name in trained if ".blocks." in name} == {"1.first", "1.second"}
    dispatch = Dispatch(1)
    dispatch.start_stage(plan, describe(model))
    dispatch.start_round()
    assert set(dispatch.download(0, plan).groups) == {"stem", "block_1", "block_2", "norm"}


def test_two_towers_cost_twice_as_much(tiny: Callable[..., Config]) -> None:
    def macs(*transforms: str) -> dict[str, int]:
        config = tiny({"encoder": {"transforms": list(transforms)}}, ssl="clip" if transforms else "simclr")
        return forward_macs_by_group(build_model(config, 3), (1, 8, 8))

    one, two = macs(), macs("two_towers")
    assert two == {key: 2 * value * (key != "heads") for key, value in one.items()}


@pytest.mark.parametrize(
    "transforms", [("gates", "two_towers"), ("cola", "shared_mlp", "two_towers"), ("lora", "two_towers")]
)
def test_towers_are_made_of_what_other_transforms_made(transforms: tuple[str, ...]) -> None:
    both, alone = (
        initial_encoder(vit(*transforms), 3, seed=1).eval(),
        initial_encoder(vit(*transforms[:-1]), 3, seed=1),
    )
    first, second = both(images()).chunk(2, dim=1)
    assert torch.equal(first, alone.eval()(images()))
    assert torch.equal(second, alone(edges(images())))
    with both.ways.noting() as noted:
        both(images())
    assert len(noted) == (6 if "gates" in transforms else 0)


def test_cnns_have_towers_too_and_encoders_of_several_widths_have_not() -> None:
    cnn = {"name": "cnn", "image_size": 8, "width": 8, "transforms": ["two_towers"]}
    encoder = build_encoder(load_config({"encoder": cnn}).encoder, 2)
    assert encoder(images()).shape == (5, 16)
    assert isinstance(encoder.reshape, nn.Identity)
    with pytest.raises(UserError, match=r"two_towers finds blocks of several widths.*allowed: an encoder"):
        outline(load_config({"encoder": {**cnn, "name": "resnet18", "width": 64}}).encoder)
    with pytest.raises(UserError, match="two_towers twice"):
        outline(vit("two_towers", "two_towers"))


def test_clip_without_towers_and_mae_with_them_are_refused(tiny: Callable[..., Config]) -> None:
    with pytest.raises(UserError, match="ssl=clip compares two towers, and the encoder has one"):
        clip(tiny)
    with pytest.raises(UserError, match="no tokens of patches"):
        build_model(tiny({"encoder": {"transforms": ["two_towers"]}}, ssl={"name": "mae", "hidden_dim": 16}), 3)
