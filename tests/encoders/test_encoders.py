import pytest
import torch

from fedbench.config import EncoderConfig
from fedbench.encoders import build_encoder, initial_encoder, load_architecture
from fedbench.errors import UserError

VIT_TINY = EncoderConfig(image_size=32, patch_size=4, width=192, depth=12, heads=3, in_channels=3)
RESNET = EncoderConfig(name="resnet18", image_size=32, in_channels=3)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_a_block_of_vit_tiny_has_the_parameters_that_the_paper_counts() -> None:
    encoder = build_encoder(VIT_TINY, depth=2)
    assert count(encoder.blocks[0]) == 444_864
    assert count(encoder.stem) == 9_408 + 64 * 192  # patch projection, position embedding; no class token
    assert count(encoder.norm) == 2 * 192


def test_the_vit_computes_what_timm_computes_from_the_same_weights() -> None:
    from timm.models.vision_transformer import VisionTransformer

    config = EncoderConfig(image_size=12, patch_size=4, width=24, depth=2, heads=3, in_channels=3)
    torch.manual_seed(0)
    encoder = build_encoder(config, depth=2).eval()
    reference = VisionTransformer(
        img_size=12, patch_size=4, embed_dim=24, depth=2, num_heads=3, class_token=False, global_pool="avg",
        fc_norm=False, num_classes=0,
    ).eval()  # fmt: skip
    state = {key.removeprefix("stem."): value for key, value in encoder.state_dict().items()}
    reference.load_state_dict(state)
    images = torch.randn(5, 3, 12, 12)
    torch.testing.assert_close(encoder(images), reference(images))


def test_resnet18_computes_what_torchvision_computes_from_the_same_weights() -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    encoder = build_encoder(RESNET.model_copy(update={"image_size": 72}), depth=4).eval()
    reference = resnet18(weights=None).eval()
    reference.fc = torch.nn.Identity()
    reference.conv1, reference.bn1 = encoder.stem[0], encoder.stem[1]
    for number, block in enumerate(encoder.blocks, start=1):
        setattr(reference, f"layer{number}", block)
    images = torch.randn(3, 3, 72, 72)
    torch.testing.assert_close(encoder(images), reference(images))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_short_resnet_is_reshaped_to_the_width_of_the_full_one(depth: int) -> None:
    encoder = build_encoder(RESNET, depth)
    assert encoder.reshape.in_features == 64 * 2 ** (depth - 1)  # type: ignore[union-attr]
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, 512)


def test_the_full_resnet_has_no_reshaping_layer_and_keeps_small_images_large() -> None:
    encoder = build_encoder(RESNET, depth=4)
    assert not list(encoder.reshape.parameters())
    assert encoder.stem(torch.randn(1, 3, 32, 32)).shape == (1, 64, 32, 32)
    large = build_encoder(RESNET.model_copy(update={"image_size": 224}), depth=1)
    assert large.stem(torch.randn(1, 3, 224, 224)).shape == (1, 64, 56, 56)


@pytest.mark.parametrize("config", [VIT_TINY, RESNET], ids=["vit", "resnet18"])
def test_every_parameter_belongs_to_one_named_part(config: EncoderConfig) -> None:
    encoder = build_encoder(config, depth=3)
    parts = encoder.parts()
    assert list(parts) == ["stem", "block_1", "block_2", "block_3", "shared", "norm", "reshape"]
    assert sum(count(part) for part in parts.values()) == count(encoder)


@pytest.mark.parametrize("config", [VIT_TINY, RESNET], ids=["vit", "resnet18"])
def test_a_shorter_encoder_starts_as_the_first_blocks_of_the_whole_one(config: EncoderConfig) -> None:
    whole, short = (initial_encoder(config, depth, seed=3).state_dict() for depth in (config.depth, 2))
    keys = [key for key in short if not key.startswith("reshape")]
    assert sum(key.startswith("blocks.1.") for key in keys)
    assert all(torch.equal(whole[key], short[key]) for key in keys)
    other = initial_encoder(config, 2, seed=4).state_dict()
    assert any(not torch.equal(other[key], short[key]) for key in keys)


def test_the_stem_of_resnet18_is_chosen_by_the_image_or_by_the_key() -> None:
    def stem(**keys: object) -> torch.nn.Module:
        return build_encoder(RESNET.model_copy(update=keys), depth=1).stem

    for keys in ({"stem": "imagenet"}, {"image_size": 224}):
        assert stem(**keys)[0].kernel_size == (7, 7)
        assert isinstance(stem(**keys)[3], torch.nn.MaxPool2d)
    for keys in ({}, {"stem": "cifar", "image_size": 224}):
        assert stem(**keys)[0].kernel_size == (3, 3)
        assert isinstance(stem(**keys)[3], torch.nn.Identity)
    with pytest.raises(UserError, match=r"encoder\.stem: unknown key; .*allowed: patch_size, width, depth, heads"):
        load_architecture(EncoderConfig.model_validate({"stem": "cifar"}))
