"""Masked autoencoder (MAE, He et al. 2022, arXiv:2111.06377): reconstruct the patches that were left out.

Shapes: B samples, C channels, T patches of p x p pixels, V visible of them, D encoder's width, E decoder's.
"""

from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from fedbench.config.schema import Dimensions, SSLConfig
from fedbench.encoders import Encoder
from fedbench.errors import UserError
from fedbench.ssl import SSLMethod, StepOutput


class MAEConfig(SSLConfig):
    """Of mask and decoder, whose width is `hidden_dim`."""

    mask_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.75
    """Share of the patches that the encoder does not see; 0: a plain autoencoder of all."""
    decoder_depth: Annotated[NonNegativeInt, Field(le=256)] = 1
    """Transformer blocks of the decoder; 8 in the paper."""
    decoder_heads: Dimensions = 4
    """Their attention heads, a divisor of `hidden_dim`; 16 in the paper."""
    normalize_pixels: bool = True
    """Whether each patch's pixels are standardised before they are compared (Sec. 3, Reconstruction target)."""


class Decoder(nn.Module):
    """Visible tokens (B, V, D) and where they stand -> pixels of every patch (B, T, p p C)."""

    def __init__(self, dim: int, side: int, pixels: int, num_visible: int, config: MAEConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.embed = nn.Linear(dim, width)
        # without masked patches nothing would train it
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width)) if num_visible < side**2 else None
        positions_TE = build_sincos2d_pos_embed([side, side], width)
        self.positions: Tensor
        self.register_buffer("positions", positions_TE, persistent=False)  # the same everywhere: not sent
        self.blocks = nn.Sequential(
            *(Block(width, config.decoder_heads, qkv_bias=True) for _ in range(config.decoder_depth))
        )
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, pixels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens_BVD: Tensor, order_BT: Tensor) -> Tensor:
        """`order_BT`: the numbers of the patches, the visible ones first, in the order of their tokens."""
        tokens_BTE = self.embed(tokens_BVD)
        if self.mask_token is not None:
            hidden = order_BT.shape[1] - tokens_BTE.shape[1]
            masks = self.mask_token.to(tokens_BTE.dtype).expand(len(tokens_BTE), hidden, -1)
            tokens_BTE = torch.cat([tokens_BTE, masks], dim=1)
        tokens_BTE = pick(tokens_BTE, order_BT.argsort(dim=1)) + self.positions
        return self.pixels(self.norm(self.blocks(tokens_BTE)))


def pick(tokens_BTD: Tensor, which_BV: Tensor) -> Tensor:
    """Of each sample the tokens of these numbers, (B, V, D)."""
    return tokens_BTD.gather(1, which_BV.unsqueeze(2).expand(-1, -1, tokens_BTD.shape[2]))


def patches_of(images: Tensor, size: int) -> Tensor:
    """Images (B, C, H, W) as patches (B, T, p p C), row by row."""
    batch, channels, side = images.shape[0], images.shape[1], images.shape[2] // size
    grid = images.reshape(batch, channels, side, size, side, size).permute(0, 2, 4, 3, 5, 1)
    return grid.reshape(batch, side * side, size * size * channels)


def standardised(patches_BTP: Tensor) -> Tensor:
    """Each patch with mean 0 and variance 1."""
    variance_BT1 = patches_BTP.var(dim=-1, keepdim=True)
    return (patches_BTP - patches_BTP.mean(dim=-1, keepdim=True)) / (variance_BT1 + 1e-6).sqrt()


class MAE(SSLMethod):
    """Mean squared error over the masked patches (Sec. 3); one view, no projections.

    The stem embeds all patches, the blocks run on the visible ones and on tokens that are no patch's (class,
    registers); the decoder sees patches alone. It is the prediction head: trained, sent and averaged like one.

    Departures: the views are those of `augmentation` (there: crop and flip alone, as in the preset); the number of
    visible patches is rounded to the nearest, and at least one (there: rounded down).
    """

    num_views = 1

    def __init__(self, encoder: Encoder, config: MAEConfig) -> None:
        super().__init__(encoder)
        embed = self._patch_embed(encoder)
        if config.hidden_dim % config.decoder_heads or config.hidden_dim % 4:
            raise UserError(
                f"ssl.hidden_dim={config.hidden_dim} with decoder_heads={config.decoder_heads}; allowed: the "
                "decoder's width is a multiple of its heads, and of 4 (sine and cosine of two coordinates)"
            )
        self.config = config
        self.patch_size, side = embed.patch_size[0], embed.grid_size[0]
        self.num_patches = side**2
        self.num_visible = max(1, round(self.num_patches * (1 - config.mask_ratio)))
        pixels = self.patch_size**2 * embed.proj.in_channels
        self.prediction_head = Decoder(encoder.feature_dim, side, pixels, self.num_visible, config)

    def _patch_embed(self, encoder: Encoder) -> PatchEmbed:
        """UserError: there are no tokens of which some could be left out."""
        embed = getattr(encoder.stem, "patch_embed", None)
        if not isinstance(embed, PatchEmbed):
            raise UserError(
                "MAE leaves out patches, and this encoder has no tokens of patches; allowed: encoder=vit, or "
                "encoder=timm with a plain vision transformer"
            )
        return embed

    def training_step(self, views: tuple[Tensor, ...], batch_idx: int = 0) -> StepOutput:
        """At least 0; about 1 where the mean of each patch is all that is known."""
        images = views[0]
        order_BT = self.draw_order(len(images), images.device)
        predicted_BTP = self.reconstruct(images, order_BT)
        target_BTP = patches_of(images, self.patch_size)
        if self.config.normalize_pixels:
            target_BTP = standardised(target_BTP)
        error_BT = (predicted_BTP - target_BTP).square().mean(dim=-1)
        masked = order_BT[:, self.num_visible :]
        return {"loss": error_BT.gather(1, masked).mean() if masked.shape[1] else error_BT.mean()}

    def one_view(self, view: Tensor) -> Tensor:
        """Encoder on the visible patches, and decoder."""
        return self.reconstruct(view, self.draw_order(len(view), view.device))

    def draw_order(self, batch: int, device: torch.device) -> Tensor:
        """A random order of the patches for each sample (B, T): the first V are seen."""
        return torch.rand(batch, self.num_patches, device=device).argsort(dim=1)

    def reconstruct(self, images: Tensor, order_BT: Tensor) -> Tensor:
        """Pixels of all patches (B, T, p p C), from those that come first in `order_BT`."""
        return self.prediction_head(self.encode_visible(images, order_BT[:, : self.num_visible]), order_BT)

    def encode_visible(self, images: Tensor, visible_BV: Tensor) -> Tensor:
        """The visible patches' tokens behind the last block and the norm, (B, V, D)."""
        tokens = self.encoder.stem(images)
        others = tokens.shape[1] - self.num_patches
        tokens = torch.cat([tokens[:, :others], pick(tokens[:, others:], visible_BV)], dim=1)
        for block in self.encoder.active:
            tokens = self.encoder.blocks[block](tokens)
        return self.encoder.norm(tokens)[:, others:]
