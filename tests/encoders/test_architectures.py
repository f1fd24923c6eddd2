"""The shipped encoders against the models of the libraries that they come from, and what any encoder must hold."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedbench.config import EncoderConfig, load_config
from fedbench.encoders import (
    build_encoder,
    image_shape,
    initial_encoder,
    load_architecture,
    num_blocks,
    outline,
    whole_encoder,
)
from fedbench.errors import UserError
from fedbench.plugins import builtin_files

SMALL: dict[str, dict[str, Any]] = {  # a configuration of each that is built in a moment
    "vit": {"image_size": 8, "patch_size": 4, "width": 16, "depth": 3, "heads": 2},
    "timm": {"model": "vit_tiny_patch16_224", "image_size": 32, "in_channels": 3},
    "resnet18": {"image_size": 16},
    "resnet50": {"image_size": 16, "in_channels": 3},
    "mobilenet_v3_small": {"image_size": 32, "in_channels": 3},
    "cnn": {"image_size": 8, "width": 8},
}


def config_of(name: str, **keys: Any) -> EncoderConfig:
    return EncoderConfig.model_validate({"name": name, **SMALL[name], **keys})


def test_every_shipped_encoder_is_here() -> None:
    assert set(SMALL) == set(builtin_files("encoders"))


@pytest.mark.parametrize("name", SMALL)
def test_every_part_has_a_group_and_each_depth_gives_the_same_features(name: str) -> None:
    config = config_of(name)
    whole = build_encoder(config, num_blocks(config))
    images = torch.zeros(2, *config.image_shape)
    for depth in (1, num_blocks(config)):
        encoder = build_encoder(config, depth).eval()
        assert encoder(images).shape == (2, whole.feature_dim)
        parts = encoder.parts()
        assert sum(len(list(part.parameters())) for part in parts.values()) == len(list(encoder.parameters()))


@pytest.mark.parametrize("name", SMALL)
def test_a_short_encoder_starts_as_the_first_blocks_of_the_whole_one(name: str) -> None:
    config = config_of(name)
    whole, short = (initial_encoder(config, depth, seed=3).state_dict() for depth in (num_blocks(config), 2))
    keys = [key for key in short if not key.startswith("reshape")]
    assert any(key.startswith("blocks.1.") for key in keys)
    assert all(torch.equal(whole[key], short[key]) for key in keys)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "cnn"])
def test_an_encoder_computes_what_its_twin_computes_from_the_same_weights(name: str) -> None:
    config = config_of(name)
    twin = load_architecture(config).twin(image_shape(config))
    assert twin is not None
    torch.manual_seed(0)
    encoder = build_encoder(config, num_blocks(config)).train()
    images = torch.randn(4, *config.image_shape)
    encoder(images)  # statistics of BatchNorm that differ from the initial ones
    there: dict[str, Any] = {}
    exec(twin.code, there)
    model = there["model"]
    model.load_state_dict({twin.rename(key): value for key, value in encoder.state_dict().items()})
    torch.testing.assert_close(encoder.eval()(images), model.eval()(images))


@pytest.mark.parametrize(
    "model",
    [
        "deit3_small_patch16_224",  # its position embedding is of patches only; layer scale
        "vit_base_patch32_clip_224",  # a norm before the blocks
        "vit_small_patch14_reg4_dinov2",  # registers
        "test_vit",  # for images of any size
    ],
)
def test_kinds_of_timm_models_compute_what_timm_computes(model: str) -> None:
    size = 28 if "patch14" in model else 32
    config = EncoderConfig.model_validate(
        {"name": "timm", "model": model, "image_size": size, "in_channels": 3, "patch_size": size // 2}
    )
    twin = load_architecture(config).twin(image_shape(config))
    assert twin is not None
    encoder = build_encoder(config, num_blocks(config)).eval()
    there: dict[str, Any] = {}
    exec(twin.code, there)
    there["model"].load_state_dict({twin.rename(key): value for key, value in encoder.state_dict().items()})
    images = torch.randn(2, *config.image_shape)
    torch.testing.assert_close(encoder(images), there["model"].eval()(images))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"name": "timm", "model": "vit_small_patch16"}, "encoder.model='vit_small_patch16'; did you mean"),
        ({"name": "timm", "model": "vit_base_patch16_siglip_224", "image_size": 32}, "pools by 'map'"),
        ({"name": "timm", "image_size": 30}, "allowed: a patch_size that divides image_size"),
        ({"name": "timm", "width": 96}, "encoder.width: unknown key; allowed: model, patch_size"),
        ({"name": "cnn", "heads": 2}, "encoder.heads: unknown key"),
        ({"name": "cnn", "stem": "cifar"}, "encoder.stem: unknown key"),
        ({"name": "timm", "model": "resnet50"}, "encoder.model=resnet50"),
        ({"name": "timm", "model": "hf-hub:timm/vit_tiny"}, "encoder.model='hf-hub:timm/vit_tiny'"),
        ({"name": "resnet50", "stem": "big"}, "encoder.stem: Input should be 'cifar' or 'imagenet'"),
        ({"width": 20, "heads": 3}, "width=20 is not divisible by heads=3"),
        ({"width": 6, "heads": 2}, "width=6 is not divisible by 4"),
        ({"name": "resnet18", "depth": 5}, r"encoder\.depth: Input should be 4 \(got 5\)"),
        ({"image_size": 4096, "patch_size": 2}, "are 4,194,304 tokens; allowed: 65,536"),
        ({"width": 100_000, "depth": 256}, "parameters; allowed: 10,000,000,000"),
        ({"patch_size": 3}, "image_size=8 is not divisible by patch_size=3"),
    ],
)
def test_a_wrong_key_is_named_with_what_is_allowed(keys: dict[str, Any], words: str) -> None:
    with pytest.raises((UserError, ValueError), match=words):
        outline(EncoderConfig.model_validate(keys))


def test_what_is_known_of_an_encoder_takes_no_memory_and_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    huge = outline(EncoderConfig(width=4096, heads=4, depth=40))
    assert (huge.num_blocks, huge.keeps_shape) == (40, True)
    assert huge.num_weights > 8e9
    assert not outline(config_of("cnn")).keeps_shape
    assert not outline(config_of("resnet18")).keeps_shape
    assert torch.equal(before, torch.get_rng_state())


def test_another_encoder_keeps_the_images_and_leaves_the_old_ones_keys_behind() -> None:
    vit = {"encoder": {"name": "vit", "image_size": 32, "patch_size": 4, "width": 32, "in_channels": 3}}
    config = load_config(vit, {"encoder": "mobilenet_v3_small"}).encoder
    assert config.model_dump() == {"name": "mobilenet_v3_small", "image_size": 32, "in_channels": 3}
    assert load_config({"encoder": config.model_dump()}).encoder == config
    assert load_config(vit, {"encoder": "resnet18"}).encoder.width == 32  # as its results were named
    small = {"encoder": {"name": "cnn", "width": 8, "init": "cnn.safetensors", "transforms": ["cola"]}}
    other = load_config(small, {"encoder": "vit"}).encoder
    assert (other.width, other.init, other.transforms) == (64, None, ({"name": "cola"},))


def test_an_encoder_of_ones_own_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mlp.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from torch import nn\n"
        "from fedbench.encoders import Architecture, Encoder, ImageShape\n"
        "@dataclass(frozen=True)\n"
        "class MLP(Architecture):\n"
        "    layers: int = 3\n"
        "    def build(self, images: ImageShape) -> Encoder:\n"
        "        stem = nn.Sequential(nn.Flatten(), nn.Linear(images.channels * images.size**2, 64))\n"
        "        blocks = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(self.layers)]\n"
        "        return Encoder(stem, blocks, nn.LayerNorm(64), nn.Identity(), [64] * self.layers)\n"
    )
    config = load_config({"encoder": {"name": str(file), "layers": 2}}).encoder
    assert outline(config).num_blocks == 2
    assert build_encoder(config, 1)(torch.zeros(3, 1, 8, 8)).shape == (3, 64)


OWN = """
from dataclasses import dataclass
import numpy as np
import torch
from torch import nn
from fedbench.encoders import Architecture, Encoder, ImageShape

@dataclass(frozen=True)
class Own(Architecture):
    def build(self, images: ImageShape) -> Encoder:
        stem = nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
        blocks = [nn.Sequential(nn.Linear(16, 16)) for _ in range(2)]
        BUILT
"""


@pytest.mark.parametrize(
    ("built", "words"),
    [
        ("return None", "build returned None; allowed: an Encoder"),
        ("return Encoder(stem, blocks, nn.Identity(), nn.Identity(), [16])", "2 blocks with 1 widths"),
        ("return Encoder(stem, blocks, nn.Identity(), nn.Identity(), [8, 16])", r"behind block 1, .* \(2, 16\)"),
        ("return Encoder(stem, blocks, nn.LayerNorm(8), nn.Identity(), [16, 16])", "encoder '.*own.py': .*shape"),
        (
            "blocks[0].given = blocks[0][0]; return Encoder(stem, blocks, stem, stem, [16, 16])",
            "without `.given.`",
        ),
    ],
)
def test_what_is_no_encoder_is_told_by_its_name(tmp_path: Path, built: str, words: str) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN.replace("BUILT", built))
    with pytest.raises(UserError, match=words):
        outline(load_config({"encoder": str(file)}).encoder)


def test_an_encoder_that_computes_with_values_as_it_is_built_is_looked_at_on_the_cpu(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    build = "rate = torch.ones(1).item(); stem.p = nn.Parameter(torch.from_numpy(np.full(16, rate)).float())"
    file.write_text(
        OWN.replace("BUILT", f"{build}; return Encoder(stem, blocks, nn.Identity(), nn.Identity(), [16, 16])")
    )
    assert outline(load_config({"encoder": str(file)}).encoder).num_blocks == 2


def test_two_ways_to_write_an_encoder_are_one() -> None:
    def whole(**keys: Any) -> EncoderConfig:
        return whole_encoder(EncoderConfig.model_validate(keys))

    assert whole(name="cnn") == whole(name="cnn", width=64) == whole(name="cnn", depth=4, width="64")
    assert whole(name="resnet50") == whole(name="resnet50", stem=None)
    assert whole(name="timm", image_size=32) == whole(name="timm", image_size=32, model="vit_tiny_patch16_224")
    assert whole(transforms="cola") == whole(transforms=[{"name": "cola", "ratio": 0.25}])
    assert whole() == EncoderConfig()
    assert whole(name="cnn", width=32) != whole(name="cnn")
