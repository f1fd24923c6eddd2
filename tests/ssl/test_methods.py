"""Each method's loss against lightly's, and what its paper says of it."""

from collections.abc import Callable

import pytest
import torch
from fedbench.methods.ssl.mae import MAE, MAEConfig, patches_of, standardised
from test_losses import ENCODER, build, cosine, views
from torch import Tensor

from fedbench.config import Config, EncoderConfig
from fedbench.encoders import Encoder, build_encoder
from fedbench.errors import UserError
from fedbench.federation.experiment import prepare


def outputs(number: int = 3, size: int = 7, dim: int = 6) -> list[Tensor]:
    torch.manual_seed(4)
    return [torch.randn(size, dim) for _ in range(number)]


def test_simsiam_holds_the_predicted_side_fixed() -> None:
    method, (x1, x2) = build("simsiam"), views()
    output = method.training_step((x1, x2))
    z1, z2 = output["projections"]
    p1, p2 = method.prediction_head(z1), method.prediction_head(z2)
    pairs = [*zip(p1, z2, strict=True), *zip(p2, z1, strict=True)]
    assert output["loss"].item() == pytest.approx(-sum(cosine(p, z) for p, z in pairs) / 2 / len(x1), rel=1e-5)
    method.prediction_head.requires_grad_(False)
    method.prediction_head.forward = lambda z: z.detach()  # type: ignore[method-assign]
    assert not method.training_step((x1, x2))["loss"].requires_grad


def test_barlow_twins_is_lightlys_with_its_own_key() -> None:
    from lightly.loss import BarlowTwinsLoss

    method, (x1, x2) = build("barlow_twins", off_diagonal=0.1), views()
    output = method.training_step((x1, x2))
    torch.testing.assert_close(output["loss"], BarlowTwinsLoss(0.1)(*output["projections"]))


def test_vicreg_is_lightlys() -> None:
    from fedbench.methods.ssl.vicreg import VICRegConfig, vicreg
    from lightly.loss import VICRegLoss

    z1, z2, _ = outputs()
    config = VICRegConfig(invariance=3, variance=5, covariance=2)
    torch.testing.assert_close(vicreg(0.3 * z1, z2, config), VICRegLoss(3, 5, 2)(0.3 * z1, z2), rtol=1e-5, atol=0)


MAE_KEYS = {"hidden_dim": 8, "decoder_heads": 2}


def mae(encoder: Encoder | None = None, **keys: object) -> MAE:
    torch.manual_seed(1)
    return MAE(encoder or build_encoder(ENCODER, 1), MAEConfig(**MAE_KEYS | keys))  # type: ignore[arg-type]


def test_maes_loss_equals_its_naive_double() -> None:
    """Four patches of 4 x 4 pixels, of which the first of `order` is seen."""
    method, images = mae(), views(3)[0]
    torch.manual_seed(5)
    loss = method.training_step((images,))["loss"].item()
    torch.manual_seed(5)
    order = method.draw_order(3, images.device)
    predicted = method.reconstruct(images, order)
    errors = []
    for sample in range(3):
        for patch in order[sample, 1:].tolist():
            row, column = 4 * (patch // 2), 4 * (patch % 2)
            pixels = images[sample, 0, row : row + 4, column : column + 4].flatten()
            target = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
            errors += (predicted[sample, patch] - target).square().tolist()
    assert loss == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_patches_are_cut_as_lightly_cuts_them() -> None:
    from lightly.models.utils import patchify

    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(patches_of(images, 4), patchify(images, 4))


def test_mae_without_a_mask_is_a_plain_autoencoder_of_all_patches() -> None:
    method, images = mae(mask_ratio=0), views(3)[0]
    assert not any(key.endswith("mask_token") for key in method.state_dict())
    whole = method.reconstruct(images, torch.arange(4).expand(3, 4))
    torch.testing.assert_close(method.reconstruct(images, method.draw_order(3, images.device)), whole)
    expected = (whole - standardised(patches_of(images, 4))).square().mean()
    torch.testing.assert_close(method.training_step((images,))["loss"], expected)


def test_a_masked_patch_leaves_no_trace_in_what_the_encoder_makes_of_the_others() -> None:
    method, images = mae(mask_ratio=0.5), views(3)[0]
    other = images.clone()
    other[:, :, :4, :4] += 1  # patch 0
    seen = torch.tensor([3, 1]).expand(3, 2)
    assert torch.equal(method.encode_visible(images, seen), method.encode_visible(other, seen))
    assert not torch.equal(method.encoder(images), method.encoder(other))


@pytest.mark.parametrize(
    ("keys", "tokens"),
    [({"name": "vit"}, 16), ({"name": "timm", "model": "vit_tiny_patch16_224", "patch_size": 2}, 17)],
)
def test_maes_blocks_run_on_the_visible_quarter(keys: dict[str, object], tokens: int) -> None:
    """64 patches: 16 are seen, and timm's class token; a block that is not active is not run."""
    encoder = build_encoder(EncoderConfig.model_validate({"image_size": 16, **keys}), 2)
    encoder.active, method = [1], mae(encoder)
    seen = []
    for number, block in enumerate(encoder.blocks):
        block.register_forward_hook(
            lambda _, inputs, __, number=number: seen.append((number, *inputs[0].shape[:2]))  # type: ignore[misc]
        )
    method.training_step((torch.randn(2, 1, 16, 16),))
    assert seen == [(1, 2, tokens)]


@pytest.mark.parametrize("name", ["resnet18", "cnn"])
def test_mae_refuses_an_encoder_without_patches(name: str) -> None:
    with pytest.raises(UserError, match="no tokens of patches; allowed: encoder=vit"):
        mae(build_encoder(EncoderConfig(name=name), 1))


def test_mae_refuses_a_decoder_whose_heads_do_not_divide_it() -> None:
    with pytest.raises(UserError, match=r"ssl.hidden_dim=8 with decoder_heads=3"):
        mae(decoder_heads=3)


@pytest.mark.dry_run
def test_what_aligns_projections_is_refused_where_there_are_none(tiny: Callable[..., Config]) -> None:
    with pytest.raises(UserError, match="tells no projections of two views; allowed: without what aligns them"):
        prepare(tiny(ssl="mae", strategy="lw_fedssl@v3"))
