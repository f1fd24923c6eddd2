"""Vision transformer of [LW] Sec. 4.1: timm's, without a class token, mean-pooled."""

from typing import Any

from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fedbench.config.schema import EncoderConfig
from fedbench.encoders.encoder import Encoder
from fedbench.encoders.twin import Twin


class PatchStem(nn.Module):
    """Patch projection and position embedding: images (B, C, H, W) -> tokens (B, T, D)."""

    def __init__(self, patch_embed: nn.Module, pos_embed: nn.Parameter) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.pos_embed = pos_embed

    def forward(self, images: Tensor) -> Tensor:
        """Tokens with their positions added."""
        return self.patch_embed(images) + self.pos_embed


def mean_tokens(tokens_BTD: Tensor) -> Tensor:
    """(B, T, D) -> (B, D)."""
    return tokens_BTD.mean(dim=1)


def build(config: EncoderConfig, depth: int) -> Encoder:
    """The first `depth` blocks of the whole transformer; the norm comes before pooling.

    Initialised like the original MoCo v3 (position embedding from sines and cosines, Xavier weights), because
    [LW] names no initialisation of its own. Unlike there, stem and position embedding are trained.
    """
    vit = VisionTransformer(**timm_arguments(config), weight_init="moco")
    side = config.image_size // config.patch_size
    positions_TD = build_sincos2d_pos_embed([side, side], config.width)
    stem = PatchStem(vit.patch_embed, nn.Parameter(positions_TD.unsqueeze(0)))
    return Encoder(stem, list(vit.blocks)[:depth], vit.norm, mean_tokens, nn.Identity(), config.width)


def timm_arguments(config: EncoderConfig) -> dict[str, Any]:
    """What makes timm's VisionTransformer this encoder's twin: the same tensors, the same features."""
    return {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "in_chans": config.in_channels,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": 4.0,
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
        "num_classes": 0,
    }


def twin(config: EncoderConfig) -> Twin:
    """timm's model of the same encoder."""
    arguments = timm_arguments(config)
    code = (
        "from timm.models.vision_transformer import VisionTransformer\n"
        f"model = VisionTransformer({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
    )
    return Twin("timm", arguments, code, {"stem.": ""})
