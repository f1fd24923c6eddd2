"""Gates against the encoder without them, and their density against what is asked for and what is counted."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from exhaustive import exhaustive
from fedbench.methods.transforms.gates import Gate
from local_task import local_task
from torch import Tensor

from fedbench.config import Config, EncoderConfig, load_config
from fedbench.conformance.witness import Witness
from fedbench.encoders import Encoder, build_encoder, initial_encoder, load_transforms, outline
from fedbench.encoders.encoder import SharedPrefix
from fedbench.encoders.tensor_groups import encoder_part
from fedbench.errors import UserError
from fedbench.evaluation import describe_features, extract_features
from fedbench.federation.experiment import check, prepare
from fedbench.metering.counting import forward_macs_by_group
from fedbench.training.model import build_model
from fedbench.training.visit import VisitHooks

VIT: dict[str, Any] = {"image_size": 8, "patch_size": 4, "width": 16, "depth": 3, "heads": 2}
BOTH = {"name": "gates", "dense": True}


def vit(*transforms: Any) -> EncoderConfig:
    return load_config({"encoder": {**VIT, "transforms": list(transforms)}}).encoder


def images(number: int = 5) -> Tensor:
    return torch.randn(number, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def force(encoder: Encoder, bias: float, channels: slice = slice(None)) -> None:
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, Gate):
                module.bias[channels] = bias


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("transforms", [(), ("shared_mlp",)])
def test_gates_forced_open_are_the_encoder_without_them_bit_for_bit(training: bool, transforms: Any) -> None:
    plain, gated = (initial_encoder(vit(*words, *transforms), 3, seed=1) for words in ((), (BOTH,)))
    force(gated, 1e9)
    expected = plain.train(training)(images())
    for way in ("gated", "dense"):
        with gated.train(training).ways.take(way):
            found = gated(images())
        assert torch.equal(found, expected)
    found.sum().backward()
    expected.sum().backward()
    assert torch.equal(gated.stem.pos_embed.grad, plain.stem.pos_embed.grad)  # type: ignore[arg-type]


def test_a_closed_gate_is_a_channel_that_is_not_there() -> None:
    gated = build_encoder(vit("gates"), 1).eval()
    force(gated, 1e9)
    force(gated, -1e9, slice(10, 64))
    mlp, x = gated.blocks[0].mlp, torch.randn(2, 4, 16)
    hidden = mlp.act(mlp.fc1(x))[..., :10]  # type: ignore[operator, union-attr]
    expected = hidden @ mlp.fc2.weight[:, :10].T + mlp.fc2.bias  # type: ignore[index, union-attr]
    torch.testing.assert_close(mlp(x), expected)  # type: ignore[operator]


def gate_of(encoder: Encoder, block: int = 0) -> Gate:
    found = [module for module in encoder.blocks[block].modules() if isinstance(module, Gate)]
    return found[0]


def test_gates_depend_on_the_sample_and_are_noisy_in_training_alone() -> None:
    gate = gate_of(build_encoder(vit("gates"), 1))
    x = 4 * torch.randn(6, 4, 16)
    once, again = (gate.train()(x) for _ in range(2))
    assert set(once.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(once, again)
    opened = gate.eval()(x)
    expected = x.mean(dim=1) @ gate.weight.T + gate.bias > 0
    assert torch.equal(opened[:, 0].bool(), expected)
    assert not torch.equal(opened[0], opened[1])


def test_each_way_has_norms_of_its_own() -> None:
    encoder = initial_encoder(vit(BOTH), 3, seed=1)
    force(encoder, 1e9)
    norms = [key for key, _ in encoder.named_parameters() if "norm" in key]
    assert len(norms) == 2 * 2 * (2 * 3 + 1)
    with torch.no_grad():
        for key, weight in encoder.named_parameters():
            if ".gated." in key:
                weight.mul_(2)
    plain = initial_encoder(vit(), 3, seed=1)(images())
    with encoder.ways.take("dense"):
        assert torch.equal(encoder(images()), plain)
    assert not torch.equal(encoder(images()), plain)


def test_the_noise_is_that_of_the_gumbel_sigmoid() -> None:
    """A gate with logit s is open with probability sigmoid(s)."""
    gate = gate_of(build_encoder(vit("gates"), 1)).train()
    with torch.no_grad():
        gate.weight.zero_()
        gate.bias.fill_(-1.0)
        share = gate(torch.zeros(2_000, 1, 16)).mean().item()
    assert share == pytest.approx(torch.tensor(-1.0).sigmoid().item(), abs=0.01)


def step(config: Config, stage: int = 1) -> tuple[float, float]:
    """The added loss of a step, and the naive budget: closed channels counted one by one, without noise."""
    task = local_task(config, stage)
    VisitHooks(task, stage, False, {}).begin()
    views = (images(), images().flip(0))
    counts: dict[int, list[float]] = {}
    for number in range(len(task.method.encoder.blocks)):

        def count(module: Any, inputs: tuple[Tensor], _: Tensor, number: int = number) -> None:
            logits = inputs[0].mean(dim=1) @ module.weight.T + module.bias
            counts.setdefault(number, []).append(
                sum(one > 0 for row in logits.tolist() for one in row) / logits.numel()
            )

        gate_of(task.method.encoder, number).register_forward_hook(count)
    with torch.random.fork_rng():
        _, added = task.step_losses(views)
    trained = sorted(prepare(config).plans[stage - 1].trainable)
    assert set(counts) == set(range(len(task.method.encoder.blocks)))
    return added.item(), sum(7 * (share - 0.25) ** 2 for number in trained for share in counts[number])


@pytest.mark.parametrize("ssl", ["gated_vicreg", "moco_v3"])
def test_the_budget_is_of_the_gates_under_training_and_without_noise(
    tiny: Callable[..., Config], ssl: str
) -> None:
    gates = {"name": "gates", "density": 0.25, "budget": 7.0, "dense": ssl == "gated_vicreg"}
    sections = {"encoder": {"transforms": [gates]}, "ssl": {"name": ssl}}
    added, expected = step(tiny(sections, strategy="fedssl"))
    assert added == pytest.approx(expected, rel=1e-5)
    assert expected > 3
    added, expected = step(tiny(sections, strategy="lw_fedssl"), stage=3)
    assert added == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("strategy", [exhaustive("fedssl"), "lw_fedssl"])
def test_the_density_at_inference_comes_within_two_points_of_the_target(
    tiny: Callable[..., Config], strategy: str
) -> None:
    """On views as in training; the figure of a table is that of the test images, gate by gate."""
    config = tiny(
        {"encoder": {"transforms": [{**BOTH, "density": 0.3}]}, "ssl": "gated_vicreg", "strategy": strategy},
        data={"num_train": 400},
        federation={"num_clients": 1, "rounds": 3, "local_epochs": 15},
        optimizer={"batch_size": 64, "base_lr": 1e-2},
    )
    experiment = prepare(config)
    encoder = build_encoder(config.encoder, 3).eval()
    encoder.load_state_dict(encoder_part(Witness(experiment).final[-1]))
    first, _ = experiment.views(experiment.dataset.train_images, torch.Generator().manual_seed(0))
    kept: list[float] = []
    for number in range(3):
        gate_of(encoder, number).register_forward_hook(lambda _, __, output: kept.append(output.mean().item()))
    with torch.no_grad():
        encoder(first)
    assert sum(kept) / 3 == pytest.approx(0.3, abs=0.02)
    kept.clear()
    extract_features(encoder, experiment.dataset.test_images)
    told = describe_features(encoder, experiment.dataset.test_images, experiment.views, 0)
    assert told["density"] == pytest.approx(sum(kept[:3]) / 3, rel=1e-5)
    with encoder.ways.take("dense"):
        assert describe_features(encoder, experiment.dataset.test_images, experiment.views, 0)["density"] == 1.0


def test_gates_cost_a_product_of_the_mean_token_and_the_dense_way_nothing(tiny: Callable[..., Config]) -> None:
    def macs(*transforms: Any, ssl: str = "vicreg") -> dict[str, int]:
        config = tiny({"encoder": {"transforms": list(transforms)}}, ssl=ssl)
        return forward_macs_by_group(build_model(config, 3), (1, 8, 8))

    plain = macs()
    gated = macs("gates")
    dense = macs({**BOTH, "judged": "dense"}, ssl="gated_vicreg")
    assert gated == {key: value + 16 * 64 * key.startswith("block_") for key, value in plain.items()}
    assert dense == plain


def test_view_one_is_gated_and_view_two_is_dense(tiny: Callable[..., Config]) -> None:
    from fedbench.methods.ssl.vicreg import vicreg

    model: Any = build_model(tiny({"encoder": {"transforms": [BOTH]}}, ssl="gated_vicreg"), 3)
    force(model.encoder, -1e9, slice(32))
    model.encoder.eval()
    first, second = images(), images().flip(0)
    output = model.training_step((first, second))
    z1, z2 = output["projections"]
    assert model.encoder.ways.taken == "gated"
    with model.encoder.ways.take("dense"):
        expected = model.project(second)
    torch.testing.assert_close(z2, expected)
    torch.testing.assert_close(z1, model.project(first))
    assert not torch.allclose(z1, z2.flip(0))
    torch.testing.assert_close(output["loss"], vicreg(z1, z2, model.config))


def test_which_way_is_judged_changes_no_bit_of_training(tiny: Callable[..., Config]) -> None:
    finals = []
    for judged in ("gated", "dense"):
        transforms = [{**BOTH, "judged": judged}]
        config = tiny({"encoder": {"transforms": transforms}}, ssl="gated_vicreg", federation={"rounds": 2})
        finals.append(Witness(prepare(config)).final[-1])
    assert finals[0].keys() == finals[1].keys()
    assert all(torch.equal(value, finals[1][key]) for key, value in finals[0].items())


def test_what_frozen_blocks_make_of_a_view_is_known_by_the_way_that_it_went() -> None:
    encoder = initial_encoder(vit(BOTH), 3, seed=1).eval()
    force(encoder, -1e9, slice(32))
    prefix, view = SharedPrefix(2), images()
    found = {}
    for way in ("gated", "dense", "gated"):
        with encoder.ways.take(way):
            hidden, alone = prefix.run(encoder, view), encoder.encode(view, 0, 2)
        assert torch.equal(hidden, alone)
        found.setdefault(way, hidden)
    assert not torch.equal(found["gated"], found["dense"])
    assert len(prefix._known) == 2


def test_the_dense_way_is_exported_as_an_encoder_without_gates() -> None:
    config = vit({**BOTH, "judged": "dense"})
    encoder, (transform,) = initial_encoder(config, 3, seed=2).eval(), load_transforms(config)
    merged = transform.merge(encoder.state_dict())
    assert merged is not None
    plain = build_encoder(vit(), 3).eval()
    plain.load_state_dict(merged)
    assert torch.equal(plain(images()), encoder(images()))
    for words in ("gates", BOTH):
        (transform,) = load_transforms(vit(words))
        assert transform.merge(encoder.state_dict()) is None


def test_gates_that_nobody_would_use_are_refused(tiny: Callable[..., Config]) -> None:
    with pytest.raises(UserError, match=r"ssl=moco_v3 takes one way .* makes gated and dense"):
        build_model(tiny({"encoder": {"transforms": [BOTH]}}), 1)
    for transforms in ([], ["gates"]):
        with pytest.raises(UserError, match="ssl=gated_vicreg takes a gated and a dense way"):
            build_model(tiny({"encoder": {"transforms": transforms}}, ssl="gated_vicreg"), 1)
    for transforms in (["gates", "gates"], [BOTH, "gates"]):
        with pytest.raises(UserError, match=r"gates (twice|finds)"):
            outline(vit(*transforms))
    with pytest.raises(UserError, match="gates in front of what replaces its layers"):
        outline(vit("cola", "gates"))
    with pytest.raises(UserError, match="gates with judged=dense has no dense way; allowed"):
        outline(vit({"name": "gates", "judged": "dense"}))
    with pytest.raises(UserError, match="gates behind"):
        outline(vit("shared_mlp", "gates"))
    check(tiny({"encoder": {"transforms": ["gates", "cola", "shared_mlp"]}}))
