"""Each loss against a double in naive Python loops."""

import math

import pytest
import torch
from ssl_methods import needed
from torch import Tensor
from torch.utils.data import DataLoader

from fedbench.config import EncoderConfig, SSLConfig
from fedbench.encoders import build_encoder
from fedbench.plugins import builtin_files, load_plugin
from fedbench.ssl import SSLMethod, load_ssl

ENCODER = EncoderConfig(image_size=8, patch_size=4, width=16, depth=1, heads=2)
SSL = SSLConfig(hidden_dim=12, output_dim=6, temperature=0.3, momentum=0.9)


def build(name: str, **keys: object) -> SSLMethod:
    torch.manual_seed(1)
    cls, config = load_ssl(SSLConfig.model_validate({**SSL.model_dump(), "name": name, **keys}))
    encoder = EncoderConfig.model_validate(ENCODER.model_dump() | needed(name).get("encoder", {}))
    method = cls(build_encoder(encoder, 1), config)  # type: ignore[call-arg]
    if method.target_encoder is not None:  # a target that differs from the online branch
        for parameter in [*method.target_encoder.parameters(), *method.target_projection_head.parameters()]:  # type: ignore[union-attr]
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return method


def views(size: int = 5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(size, 1, 8, 8), torch.randn(size, 1, 8, 8)


def cosine(a: Tensor, b: Tensor) -> float:
    return (a @ b / (a.norm() * b.norm())).item()


def naive_info_nce(q: Tensor, k: Tensor, temperature: float) -> float:
    total = 0.0
    for i in range(len(q)):
        similar = [math.exp(cosine(q[i], k[j]) / temperature) for j in range(len(k))]
        total -= math.log(similar[i] / sum(similar))
    return total / len(q)


def naive_nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> float:
    z, size = torch.cat([z1, z2]), len(z1)
    total = 0.0
    for i in range(2 * size):
        similar = {j: math.exp(cosine(z[i], z[j]) / temperature) for j in range(2 * size) if j != i}
        total -= math.log(similar[(i + size) % (2 * size)] / sum(similar.values()))
    return total / (2 * size)


def naive_loss(name: str, method: SSLMethod, x1: Tensor, x2: Tensor) -> float:
    z1, z2 = method.project(x1), method.project(x2)
    if name == "simclr":
        return naive_nt_xent(z1, z2, SSL.temperature)
    q1, q2 = method.prediction_head(z1), method.prediction_head(z2)
    k1, k2 = method.target_project(x1), method.target_project(x2)
    if name == "moco_v3":
        return naive_info_nce(q1, k2, SSL.temperature) + naive_info_nce(q2, k1, SSL.temperature)
    pairs = [*zip(q1, k2, strict=True), *zip(q2, k1, strict=True)]
    return sum(2 - 2 * cosine(q, k) for q, k in pairs) / len(x1)


@pytest.mark.parametrize("name", ["byol", "moco_v3", "simclr"])
def test_the_loss_equals_its_naive_double(name: str) -> None:
    method, (x1, x2) = build(name), views()
    assert method.training_step((x1, x2))["loss"].item() == pytest.approx(
        naive_loss(name, method, x1, x2), rel=1e-5
    )


def test_nt_xent_is_lightlys() -> None:
    from fedbench.methods.ssl.simclr import nt_xent
    from lightly.loss import NTXentLoss

    z1, z2 = (view.flatten(1) for view in views())
    expected = NTXentLoss(0.3, memory_bank_size=0)(z1, z2)
    torch.testing.assert_close(nt_xent(z1, z2, 0.3), expected)


@pytest.mark.parametrize("name", builtin_files("ssl"))
def test_only_the_online_branch_gets_a_gradient(name: str) -> None:
    method = build(name)
    method.training_step(views())["loss"].backward()
    for key, parameter in method.named_parameters():
        has_gradient = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert has_gradient != key.startswith("target_"), key


def test_moco_v3_has_the_heads_of_the_paper() -> None:
    vit_tiny = EncoderConfig(image_size=32, patch_size=4, width=192, depth=1, heads=3, in_channels=3)
    method = load_plugin("ssl", "moco_v3", SSLMethod)(build_encoder(vit_tiny, 1), SSLConfig())  # type: ignore[call-arg]
    head = {
        name: sum(parameter.numel() for parameter in getattr(method, f"{name}_head").parameters())
        for name in ("projection", "prediction")
    }
    assert head["projection"] == 192 * 512 + 512 * 512 + 512 * 256 + 2 * (512 + 512 + 256)
    assert head["prediction"] == 256 * 512 + 512 * 256 + 2 * (512 + 256)


def test_the_target_moves_by_one_minus_momentum() -> None:
    method = build("moco_v3")
    online = method.encoder.norm.weight
    target = method.target_encoder.norm.weight  # type: ignore[union-attr]
    expected = 0.9 * target.detach() + 0.1 * online.detach()
    method.update_target()
    torch.testing.assert_close(target, expected)


def test_a_frozen_parameter_and_its_target_stay_equal_bit_for_bit() -> None:
    method = build("byol")
    method.rebuild_target()
    method.encoder.blocks.requires_grad_(False)
    before = {key: value.clone() for key, value in method.encoder.blocks.state_dict().items()}
    for _ in range(10):
        method.update_target()
    after = method.target_encoder.blocks.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_rebuilding_the_target_copies_parameters_and_buffers() -> None:
    method = build("moco_v3")
    method.training_step(views())  # moves BatchNorm's running statistics
    method.rebuild_target()
    online, target = method.projection_head.state_dict(), method.target_projection_head.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(online[key], target[key]) for key in online)


def test_the_online_state_holds_no_target() -> None:
    keys = build("moco_v3").online_state()
    assert {key.split(".")[0] for key in keys} == {"encoder", "projection_head", "prediction_head"}


@pytest.mark.parametrize("name", builtin_files("ssl"))
def test_a_method_trains_under_a_plain_lightning_trainer(name: str) -> None:
    from lightning import LightningModule, Trainer

    method = build(name)
    assert isinstance(method, LightningModule)
    method.configure_optimizers = lambda: torch.optim.SGD(method.parameters(), lr=0.1)  # type: ignore[method-assign]
    *_, bias = method.encoder.norm.parameters()
    before = bias.detach().clone()
    batches = DataLoader([views()], batch_size=None)  # type: ignore[arg-type]
    Trainer(max_epochs=1, accelerator="cpu", barebones=True).fit(method, batches)
    assert not torch.equal(before, bias.detach())
