"""Each method's loss against lightly's, and what its paper says of it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fedbench.methods.ssl.dino import cross_entropies
from fedbench.methods.ssl.mae import MAE, MAEConfig, patches_of, standardised
from fedbench.methods.ssl.moco_v2 import queue_nce
from fedbench.methods.ssl.rotation import turned
from local_task import local_task
from test_losses import ENCODER, build, cosine, views
from torch import Tensor

from fedbench.config import Config, EncoderConfig, SSLConfig, load_config, resolve_file
from fedbench.config.plain_yaml import read_yaml
from fedbench.encoders import Encoder, build_encoder
from fedbench.errors import UserError
from fedbench.federation.experiment import prepare
from fedbench.metering.counting import forward_macs_by_group
from fedbench.metering.step import measure_step, trace_step
from fedbench.plugins import builtin_files
from fedbench.ssl import load_ssl
from fedbench.training.visit import VisitHooks


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


def test_moco_v2_is_lightlys_loss_with_a_memory_bank_of_the_queue() -> None:
    from lightly.loss import NTXentLoss

    q, k, queue = (F.normalize(one, dim=1) for one in outputs())
    lightlys = NTXentLoss(0.3, memory_bank_size=(len(queue), queue.shape[1]))
    lightlys.memory_bank.bank = queue.clone()
    torch.testing.assert_close(queue_nce(q, k, queue, 0.3), lightlys(q, k), rtol=1e-5, atol=0)


def test_moco_v2s_queue_holds_the_newest_keys_of_both_views_and_no_loss_sees_its_own() -> None:
    method, (x1, x2) = build("moco_v2", queue_size=12), views()
    before = method.target_queue.clone()  # type: ignore[operator]
    k1, k2 = (F.normalize(method.target_project(view), dim=1) for view in (x1, x2))
    q1, q2 = (F.normalize(method.project(view), dim=1) for view in (x1, x2))
    expected = (queue_nce(q1, k2, before, 0.3) + queue_nce(q2, k1, before, 0.3)) / 2
    torch.testing.assert_close(method.training_step((x1, x2))["loss"], expected)
    assert torch.equal(method.target_queue, torch.cat([k1, k2, before])[:12])  # type: ignore[arg-type]
    assert "target_queue" not in method.online_state()


def queue_of(config: Config) -> dict[int, Tensor]:
    """The queue with which each client leaves its second visit, when the first had left it full of one."""
    found = {}
    task = local_task(config)
    for client in (0, 1):
        task.method.rebuild_target()
        hooks = VisitHooks(task, 1, True, {"MoCoV2": {"queue": {"queue": torch.full((20, 8), float(client))}}})
        hooks.begin()
        found[client] = task.method.target_queue.clone()  # type: ignore[operator]
        task.method.target_queue.fill_(7)  # type: ignore[operator]
        hooks.end()
        if config.ssl.model_dump()["keep_queue"]:
            assert hooks.kept["MoCoV2"]["queue"]["queue"].unique().tolist() == [7]
    return found


def test_a_client_goes_on_with_its_own_queue_or_starts_anew(tiny: Callable[..., Config]) -> None:
    ssl = {"name": "moco_v2", "queue_size": 20}
    kept = queue_of(tiny(ssl={**ssl, "keep_queue": True}))
    assert [kept[client].unique().tolist() for client in kept] == [[0], [1]]
    anew = queue_of(tiny(ssl={**ssl, "keep_queue": False}))
    assert torch.equal(anew[0], anew[1])
    torch.testing.assert_close(anew[0].norm(dim=1), torch.ones(20))


@pytest.mark.parametrize("count", [2, 4])
def test_dinos_loss_and_centre_are_lightlys(count: int) -> None:
    from lightly.loss import DINOLoss

    students, center = outputs(count), torch.linspace(-1, 1, 6)
    teachers = [one.flip(0) for one in students[:2]]
    lightlys = DINOLoss(6, teacher_temp=0.2, student_temp=0.3, center_momentum=0.7)
    lightlys.center.copy_(center)
    method: Any = build("dino", teacher_temperature=0.2, center_momentum=0.7)
    ours = cross_entropies(students, teachers, center, method.config)
    torch.testing.assert_close(ours, lightlys(teachers, students), rtol=1e-5, atol=0)
    method.center.copy_(center)
    method.move_center(teachers)
    torch.testing.assert_close(method.center, lightlys.center[0, 0])


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_dinos_head_is_lightlys_with_rows_of_length_one() -> None:
    from lightly.models.modules.heads import DINOProjectionHead

    ours: Any = build("dino", bottleneck_dim=5).projection_head
    theirs = DINOProjectionHead(16, 12, 5, 6)
    theirs.layers.load_state_dict(ours.layers.state_dict())
    theirs.last_layer.weight_v.data.copy_(ours.last_layer.weight)
    x = torch.randn(3, 16)
    torch.testing.assert_close(ours(x), theirs(x))


def test_dinos_centre_travels_and_its_teacher_does_not() -> None:
    keys = build("dino").online_state()
    assert "center" in keys
    assert not any(key.startswith("target_") for key in keys)


@pytest.mark.parametrize("count", [2, 4])
def test_swavs_loss_is_lightlys_on_prototypes_of_length_one(count: int) -> None:
    from lightly.loss import SwaVLoss

    method: Any = build("swav", num_prototypes=4)
    method.prediction_head.weight.data.mul_(torch.tensor([[0.1], [2], [3], [1]]))
    x = [torch.randn(5, 1, 8, 8) for _ in range(count)]
    rows = torch.stack([row / row.norm() for row in method.prediction_head.weight])
    scores = [torch.stack([one / one.norm() for one in method.project(view)]) @ rows.T for view in x]
    expected = SwaVLoss(0.3)(scores[:2], scores[2:])
    torch.testing.assert_close(method.training_step(tuple(x))["loss"], expected[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["dino", "swav"])
@pytest.mark.parametrize("strategy", ["fedssl", "lw_fedssl@v3"])
def test_small_crops_reach_the_loss_and_are_priced(tiny: Callable[..., Config], name: str, strategy: str) -> None:
    costs = []
    for crops in (0, 3):
        task = local_task(tiny(ssl=name, strategy=strategy, augmentation={"local_crops": crops}), stage=1)
        VisitHooks(task, 1, False, {}).begin()
        views = task.views(task.images[:8], torch.Generator().manual_seed(0))
        assert [view.shape[-1] for view in views] == [8, 8, *[4] * crops]
        costs.append(trace_step(task, 8, (1, 8, 8), "32-true"))
        real = measure_step(task, views, "32-true")
        assert (real.flops, real.peak_memory_bytes) == (costs[-1].flops, costs[-1].peak_memory_bytes)
    assert costs[1].flops > costs[0].flops


def test_the_papers_rules_count_maes_visible_tokens_and_its_decoder() -> None:
    """16 patches, 4 of them seen by a block of width 16; the decoder of width 8 sees 16."""
    encoder = EncoderConfig(image_size=16, patch_size=4, width=16, depth=1, heads=2)
    macs = forward_macs_by_group(mae(build_encoder(encoder, 1)), (1, 16, 16))

    def block(width: int, tokens: int) -> int:
        return tokens * 12 * width**2 + 2 * tokens**2 * width

    def norm(width: int, tokens: int) -> int:
        return 5 * width * tokens

    assert macs["block_1"] == block(16, 4) + 2 * norm(16, 4)
    assert macs["heads"] == 4 * 16 * 8 + block(8, 16) + 3 * norm(8, 16) + 16 * 8 * 16


@pytest.mark.parametrize("name", sorted(set(builtin_files("ssl")) - {"byol", "moco_v3", "simclr"}))
def test_a_method_has_a_preset_of_its_paper(name: str) -> None:
    path = resolve_file(name, "presets")
    assert "as its paper has it (arXiv:" in path.read_text().splitlines()[0]
    config = load_config(read_yaml(path))
    cls, _ = load_ssl(config.ssl)
    assert config.ssl.name == name
    assert cls.takes_crops == bool(config.augmentation.local_crops)


def test_another_method_on_top_of_a_preset_drops_the_keys_that_were_the_first_ones_own() -> None:
    config = load_config(read_yaml(resolve_file("vicreg", "presets")), {"ssl": "byol"})
    assert config.ssl.model_dump() == {**SSLConfig().model_dump(), "name": "byol"} | {
        "hidden_dim": 8192,
        "output_dim": 8192,
    }
    load_ssl(config.ssl)


def test_a_step_of_dino_moves_the_centre() -> None:
    method: Any = build("dino", center_momentum=0.5)
    assert not method.center.any()
    both = views()
    outputs = torch.cat([method.target_project(view) for view in both])
    method.training_step(both)
    torch.testing.assert_close(method.center, outputs.mean(dim=0) / 2)


def test_the_ith_image_is_turned_i_mod_4_times() -> None:
    view = torch.arange(6 * 9.0).reshape(6, 1, 3, 3)
    rotated, turns = turned(view)
    assert turns.tolist() == [0, 1, 2, 3, 0, 1]
    for image, before, turn in zip(rotated, view, turns.tolist(), strict=True):
        for _ in range(turn):  # a quarter against the clock: the last column becomes the first row
            before = torch.stack([before[:, :, 2 - row] for row in range(3)], dim=1)
        assert torch.equal(image, before)


def test_rotation_asks_for_the_turns_of_half_a_batch_of_each_view_and_tells_both_branches() -> None:
    method, (x1, x2) = build("rotation"), views(6)
    output = method.training_step((x1, x2))
    mixed, turns = turned(torch.cat([x1[:3], x2[3:]]))
    scores = method.prediction_head(method.project(mixed))
    expected = sum(math.log(sum(s.exp().tolist())) - s[turn].item() for s, turn in zip(scores, turns, strict=True))
    assert output["loss"].item() == pytest.approx(expected / 6, rel=1e-5)
    for kind, project in (("projections", method.project), ("targets", method.target_project)):
        for told, view in zip(output[kind], (x1, x2), strict=True):  # type: ignore[literal-required]
            assert torch.equal(told, project(view))
