"""Transforms against what they must equal, and that costs and traffic follow without a special case."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fedbench.cli import main
from fedbench.config import Config, EncoderConfig, load_config
from fedbench.encoders import (
    build_encoder,
    image_shape,
    initial_encoder,
    load_architecture,
    load_transforms,
    outline,
)
from fedbench.encoders.tensor_groups import by_group
from fedbench.errors import UserError
from fedbench.federation.dispatch import Dispatch
from fedbench.federation.experiment import check, prepare
from fedbench.federation.plan import StagePlan
from fedbench.federation.shipment import describe
from fedbench.federation.strategy import load_strategy
from fedbench.metering.counting import forward_macs_by_group
from fedbench.plugins import builtin_files
from fedbench.running.cell import identity
from fedbench.training.model import build_model, freeze_all_but

VIT: dict[str, Any] = {"image_size": 8, "patch_size": 4, "width": 16, "depth": 3, "heads": 2}
TINY_VIT = {"image_size": 32, "patch_size": 4, "width": 192, "depth": 12, "heads": 3, "in_channels": 3}
TRANSFORMS = sorted(builtin_files("transforms"))


def vit(*transforms: Any, **keys: Any) -> EncoderConfig:
    return load_config({"encoder": {**VIT, **keys, "transforms": list(transforms)}}).encoder


def count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def test_a_low_rank_layer_of_full_rank_without_activation_is_a_product_of_matrices() -> None:
    layer = build_encoder(vit({"name": "cola", "ratio": 1.0, "activation": "none"}), 1).blocks[0].mlp.fc1
    x = torch.randn(5, 16)
    torch.testing.assert_close(layer(x), x @ layer.down.weight.T @ layer.up.weight.T + layer.up.bias)
    assert torch.linalg.matrix_rank(layer.up.weight @ layer.down.weight) == 16


def test_low_rank_layers_have_r_times_inputs_and_outputs_weights_and_cost_as_many_multiplications() -> None:
    plain, low = (forward_macs_by_group(build_model(one, 3), (1, 8, 8)) for one in (of(), of("cola")))
    tokens, inputs, outputs, rank = 4, 16, 64, 4
    layers = build_encoder(vit("cola"), 1).blocks[0].mlp
    assert count(layers.fc1) == rank * (inputs + outputs) + outputs
    shapes = [(16, 48), (16, 16), (16, 64), (64, 16)]  # qkv, projection, MLP
    saved = sum(tokens * (a * b - rank * (a + b)) for a, b in shapes)
    assert plain["block_2"] - low["block_2"] == saved
    assert plain["stem"] == low["stem"]


def of(*transforms: Any, **sections: Any) -> Config:
    heads = {"ssl": {"hidden_dim": 16, "output_dim": 8}}
    return load_config(heads, {"encoder": {**VIT, "transforms": list(transforms)}}, sections)


@pytest.mark.parametrize("trained", ["always", "first"])
def test_one_mlp_is_stored_sent_and_counted_once_and_costs_as_many_multiplications(trained: str) -> None:
    shared = {"name": "shared_mlp", "trained": trained}
    whole, one = (outline(EncoderConfig(**TINY_VIT, transforms=words)).num_weights for words in (None, [shared]))
    mlp = 2 * 4 * 192**2 + 5 * 192
    assert whole - one == 11 * mlp
    rest = 9_408 + 64 * 192 + 2 * 192  # stem and norm
    assert (whole - rest) / (one - rest) == pytest.approx(2.56, abs=0.005)  # of the blocks
    plain, single = (forward_macs_by_group(build_model(config, 3), (1, 8, 8)) for config in (of(), of(shared)))
    assert sum(plain.values()) == sum(single.values())
    groups = by_group(build_model(of(shared), 3).online_state())
    assert sum("mlp" in key or "carried" in key for key in groups.get("block_1", ())) == 0
    assert ("shared" in groups) == (trained == "always")


def test_a_copy_of_an_encoder_shares_its_own_mlp() -> None:
    model = build_model(of("shared_mlp"), 3)
    assert model.target_encoder is not None
    with torch.no_grad():
        for weight in model.target_encoder.shared.parameters():
            weight.zero_()
    first, last = (model.target_encoder.blocks[number].mlp(torch.randn(2, 4, 16)) for number in (0, 2))
    assert not first.any()
    assert not last.any()
    assert model.encoder.blocks[2].mlp(torch.randn(2, 4, 16)).any()


def test_nothing_is_frozen_as_long_as_a_shared_mlp_is_trained() -> None:
    newest = StagePlan(3, trainable=[2], upload=[2])
    for trained, frozen in (("always", 0), ("first", 2)):
        model = build_model(of({"name": "shared_mlp", "trained": trained}), 3)
        freeze_all_but(model, newest.trained_groups)
        assert model.encoder.num_frozen() == frozen


def test_additions_start_at_zero_and_nothing_else_of_the_encoder_is_trained() -> None:
    plain, adapted = (initial_encoder(vit(*words), 3, seed=1) for words in ((), ("lora",)))
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(plain.eval()(images), adapted.eval()(images))
    model = build_model(of({"name": "lora", "rank": 2}), 3)
    freeze_all_but(model, StagePlan.end_to_end(3).trained_groups)
    trained = {name for name, weight in model.encoder.named_parameters() if weight.requires_grad}
    assert trained
    assert all(name.endswith((".down", ".up")) for name in trained)
    assert sum(dict(model.encoder.named_parameters())[name].numel() for name in trained) == 3 * 2 * (
        64 + 32 + 80 + 80
    )


def test_given_weights_are_sent_to_a_client_once() -> None:
    plan = StagePlan.end_to_end(3)
    model = build_model(of("lora"), 3)
    dispatch = Dispatch(2)
    dispatch.start_stage(plan, describe(model))
    dispatch.start_round()
    first = dispatch.download(0, plan)
    dispatch.trained(0, plan)
    dispatch.changed(plan.uploaded_groups & set(dispatch.groups), aggregated=True)
    dispatch.start_round()
    second = dispatch.download(0, plan)
    given = {group for group in dispatch.groups if group.startswith("given_")}
    assert given == {"given_stem", "given_norm", *(f"given_block_{number}" for number in (1, 2, 3))}
    assert given <= set(first.groups)
    assert not given & {*second.groups, *plan.uploaded_groups}
    without = set(dispatch.download(1, plan.without([0])).groups)
    assert given - without == {"given_block_1"}


def test_merged_additions_compute_what_they_computed_apart() -> None:
    config = vit({"name": "lora", "rank": 3, "alpha": 5.0})
    adapted = build_encoder(config, 3).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if name.endswith(".up"):
                weight.normal_()
    (transform,) = load_transforms(config)
    merged = transform.merge(adapted.state_dict())
    assert merged is not None
    plain = build_encoder(vit(), 3).eval()
    plain.load_state_dict(merged)
    images = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(adapted(images), plain(images))


@pytest.mark.parametrize("name", sorted({*TRANSFORMS} - {"two_towers"}))
def test_a_transform_is_refused_where_it_finds_nothing_to_change(name: str) -> None:
    cnn = load_config({"encoder": {"name": "cnn", "image_size": 8, "transforms": [name]}}).encoder
    with pytest.raises(UserError, match=f"encoder.transforms: {name} finds .*allowed: a transformer"):
        outline(cnn)


@pytest.mark.exhaustive
@pytest.mark.dry_run
@pytest.mark.parametrize("words", [["lora", "rank=2"], ["gates"], ["two_towers"]])
def test_a_transform_passes_the_check(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *words]) == 0
    assert capsys.readouterr().out.endswith(": 0 failed\n")


def test_wrong_keys_of_transforms_are_named() -> None:
    with pytest.raises(UserError, match=r"encoder\.transforms: 'colla' is not known; did you mean 'cola'"):
        load_config({"encoder": {"transforms": ["colla"]}})
    with pytest.raises(UserError, match=r"encoder\.transforms\.0\.ratio: .*\(got 2\)"):
        outline(vit({"name": "cola", "ratio": 2}))
    with pytest.raises(UserError, match="each needs a name"):
        load_config({"encoder": {"transforms": [{"ratio": 1}]}})


def exported(config: EncoderConfig, file: Path, **more: torch.Tensor) -> Path:
    """The state dict of the encoder's twin, as timm would save it."""
    twin = load_architecture(config).twin(image_shape(config))
    assert twin is not None
    state = initial_encoder(config, config.depth, seed=7).state_dict()
    save_file({twin.rename(key): value.contiguous() for key, value in state.items()} | more, file)
    return file


def test_a_run_starts_from_given_weights_by_its_own_names_or_its_twins(tmp_path: Path) -> None:
    config = vit()
    theirs = exported(config, tmp_path / "timm.safetensors", **{"head.weight": torch.zeros(10, 16)})
    own = tmp_path / "encoder.safetensors"
    save_file(initial_encoder(config, 3, seed=7).state_dict(), own)
    expected = load_file(own)
    for place in (theirs, own, tmp_path):
        given = vit(init=str(place))
        started = initial_encoder(given, 2, seed=0).state_dict()
        assert all(torch.equal(expected[key], value) for key, value in started.items())
    lora = initial_encoder(vit("lora", init=str(own)), 3, seed=0).state_dict()
    assert torch.equal(lora["blocks.1.mlp.fc1.given.weight"], expected["blocks.1.mlp.fc1.weight"])


def test_given_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = exported(vit(), tmp_path / "timm.safetensors")
    for config, words in (
        (vit(init=str(tmp_path / "none.safetensors")), "is not there; allowed: a .safetensors file"),
        (vit(width=32, init=str(file)), r"has shape .*; allowed: "),
        (vit(depth=4, init=str(file)), "has no 'blocks.3.norm1.weight'"),
        (vit(depth=2, init=str(file)), "has 'blocks.2.*', which the encoder has not"),
    ):
        with pytest.raises(UserError, match=words):
            initial_encoder(config, 1, seed=0)
    noise = tmp_path / "noise.safetensors"
    noise.write_bytes(b"noise")
    with pytest.raises(UserError, match="cannot be read"):
        initial_encoder(vit(init=str(noise)), 1, seed=0)


def test_given_weights_are_part_of_the_cell_and_their_place_is_not(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:

    def cell(file: Path) -> str:
        return identity(prepare(tiny({"encoder": {"init": str(file)}})))

    shape = tiny().encoder
    first = exported(shape, tmp_path / "one.safetensors")
    second = exported(shape, tmp_path / "two.safetensors")
    assert cell(first) == cell(second) != identity(prepare(tiny()))
    state = load_file(second)
    save_file({key: value + 1 for key, value in state.items()}, second)
    assert cell(first) != cell(second)


def test_given_weights_are_not_overwritten_in_silence(tiny: Callable[..., Config], tmp_path: Path) -> None:
    file = exported(tiny().encoder, tmp_path / "one.safetensors")
    given = tiny({"encoder": {"init": str(file)}, "strategy": "lw_fedssl@v3"})
    with pytest.raises(UserError, match=r"strategy\.init=copy_previous, which would overwrite it"):
        check(given)
    check(tiny({"encoder": {"init": str(file), "transforms": ["lora"]}, "strategy": "lw_fedssl@v3"}))


@pytest.mark.parametrize("name", sorted({*TRANSFORMS} - {"two_towers"}))
def test_a_masked_autoencoder_trains_on_what_a_transform_makes(name: str) -> None:
    for trained in ("always", "first") if name == "shared_mlp" else ("",):
        keys = {"trained": trained} if trained else {}
        model = build_model(of({"name": name, **keys}, ssl={"name": "mae", "hidden_dim": 16}), 3)
        model.training_step((torch.randn(2, 1, 8, 8),))["loss"].backward()


@pytest.mark.parametrize(
    ("transforms", "words"),
    [
        (["lora", "cola"], "cola behind a transform that makes weights that are kept as given"),
        (["shared_mlp", "cola"], "cola behind a transform that makes one MLP for all blocks"),
        (["shared_mlp", "lora"], "lora behind"),
        (["lora", "lora"], "lora behind"),
        (["shared_mlp", "shared_mlp"], "shared_mlp twice"),
    ],
)
def test_an_order_that_would_be_another_model_is_refused(transforms: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        outline(vit(*transforms))
    outline(vit("cola", "shared_mlp"))
    outline(vit("lora", "shared_mlp"))


@pytest.mark.parametrize("wrong", [torch.full((16,), float("nan")), torch.zeros(16, dtype=torch.int8)])
def test_given_weights_are_finite_numbers(tmp_path: Path, wrong: torch.Tensor) -> None:
    file = exported(vit(), tmp_path / "timm.safetensors")
    save_file(load_file(file) | {"norm.weight": wrong}, file)
    with pytest.raises(UserError, match=r"'norm\.weight' is torch\..*allowed: finite values"):
        initial_encoder(vit(init=str(file)), 1, seed=0)


def test_additions_beside_tensors_of_a_block_itself_are_refused() -> None:
    encoder = build_encoder(vit(), 3)
    encoder.blocks[1].register_parameter("gamma", nn.Parameter(torch.ones(16)))
    (transform,) = load_transforms(vit("lora"))
    with pytest.raises(UserError, match="lora cannot keep the tensors of Block"):
        transform.apply(encoder)


def test_given_modules_stay_in_eval_mode() -> None:
    encoder = build_encoder(vit("lora"), 2).train()
    assert encoder.training
    assert not any(module.training for module in (encoder.stem, *encoder.stem.modules(), encoder.norm))


def test_a_new_block_copies_the_additions_of_the_one_before_and_keeps_its_given_weights() -> None:
    short, long = (build_model(of("lora"), depth).online_state() for depth in (1, 2))
    started = load_strategy({"name": "lw_fedssl", "init": "copy_previous"}).start_stage(2, long, short)
    adapted, given = "encoder.blocks.{}.mlp.fc1.down", "encoder.blocks.{}.mlp.fc1.given.weight"
    assert torch.equal(started[adapted.format(1)], short[adapted.format(0)])
    assert torch.equal(started[given.format(1)], long[given.format(1)])
