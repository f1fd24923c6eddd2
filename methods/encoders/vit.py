"""Vision transformer of [LW] Sec. 4.1: timm's, without a class token, mean-pooled."""

from dataclasses import dataclass
from math import isqrt
from typing import Annotated, Any

from pydantic import Field, PositiveInt
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fedbench.config.schema import MAX_SIZE, Blocks, Dimensions
from fedbench.encoders import Architecture, Encoder, ImageShape, Twin
from fedbench.encoders.pooling import mean_tokens
from fedbench.errors import UserError

MAX_TOKENS = 65_536  # of an image
MAX_PARAMETERS = 10_000_000_000


class PatchStem(nn.Module):
    """Patch projection and position embedding: images (B, C, H, W) -> tokens (B, T, D).

    For images of another size than the encoder's (small crops) the positions are interpolated.
    """

    def __init__(self, patch_embed: nn.Module, pos_embed: nn.Parameter) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.pos_embed = pos_embed

    def forward(self, images: Tensor) -> Tensor:
        """Tokens with their positions added."""
        tokens_BTD = self.patch_embed(images)
        return tokens_BTD + positions_for(self.pos_embed, tokens_BTD)


def positions_for(pos_embed: Tensor, tokens_BTD: Tensor, others: int = 0) -> Tensor:
    """The embedding of a square of positions, interpolated where there are `tokens_BTD` of another number.

    `others`: positions that come first and are no patch's.
    """
    if pos_embed.shape[1] == tokens_BTD.shape[1] + others:
        return pos_embed
    side = isqrt(tokens_BTD.shape[1])
    positions: Tensor = resample_abs_pos_embed(pos_embed, [side, side], num_prefix_tokens=others)
    return positions


@dataclass(frozen=True)
class ViT(Architecture):
    """The norm comes before pooling.

    Initialised like the original MoCo v3 (position embedding from sines and cosines, Xavier weights), because
    [LW] names no initialisation of its own. Unlike there, stem and position embedding are trained.
    """

    patch_size: Annotated[PositiveInt, Field(le=MAX_SIZE)] = 2
    """Pixels, a divisor of `image_size`."""
    width: Dimensions = 64
    """Dimensions of a token, divisible by `heads` and by 4."""
    depth: Blocks = 4
    """Blocks."""
    heads: Dimensions = 4
    """Attention heads, a divisor of `width`."""

    def check(self, images: ImageShape) -> None:
        """Patches and heads divide, and the whole has a size that a person can wait for."""
        if images.size % self.patch_size:
            raise UserError(
                f"encoder.image_size={images.size} is not divisible by patch_size={self.patch_size}; "
                "allowed: a patch_size that divides image_size"
            )
        if self.width % self.heads:
            raise UserError(
                f"encoder.width={self.width} is not divisible by heads={self.heads}; "
                "allowed: a number of heads that divides width"
            )
        if self.width % 4:
            raise UserError(
                f"encoder.width={self.width} is not divisible by 4; allowed: multiples of 4 "
                "(sine and cosine of two coordinates in the position embedding)"
            )
        tokens = (images.size // self.patch_size) ** 2
        if tokens > MAX_TOKENS:
            raise UserError(
                f"encoder.image_size={images.size} with patch_size={self.patch_size} are {tokens:,} tokens; "
                f"allowed: {MAX_TOKENS:,}"
            )
        weights = 12 * self.width**2 * self.depth  # of attention 4 D^2, of the MLP 8 D^2
        if weights > MAX_PARAMETERS:
            raise UserError(
                f"encoder.width={self.width} with depth={self.depth} are {weights:,} parameters; "
                f"allowed: {MAX_PARAMETERS:,}"
            )

    def build(self, images: ImageShape) -> Encoder:
        """timm's blocks around our stem."""
        vit = VisionTransformer(**self._arguments(images), weight_init="moco")
        vit.patch_embed.strict_img_size = False
        side = images.size // self.patch_size
        positions_TD = build_sincos2d_pos_embed([side, side], self.width)
        stem = PatchStem(vit.patch_embed, nn.Parameter(positions_TD.unsqueeze(0)))
        return Encoder(stem, list(vit.blocks), vit.norm, mean_tokens, [self.width] * self.depth)

    def twin(self, images: ImageShape) -> Twin:
        """timm's model of the same encoder."""
        arguments = self._arguments(images)
        code = (
            "from timm.models.vision_transformer import VisionTransformer\n"
            f"model = VisionTransformer({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
        )
        return Twin("timm", arguments, code, {"stem.": ""})

    def _arguments(self, images: ImageShape) -> dict[str, Any]:
        """What makes timm's VisionTransformer this encoder's twin: the same tensors, the same features."""
        return {
            "img_size": images.size,
            "patch_size": self.patch_size,
            "in_chans": images.channels,
            "embed_dim": self.width,
            "depth": self.depth,
            "num_heads": self.heads,
            "mlp_ratio": 4.0,
            "class_token": False,
            "global_pool": "avg",
            "fc_norm": False,
            "num_classes": 0,
        }
