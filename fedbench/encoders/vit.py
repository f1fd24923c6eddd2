"""Vision transformer of [LW] Sec. 4.1: timm's, without a class token, mean-pooled."""

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fedbench.config.schema import EncoderConfig
from fedbench.encoders.encoder import Encoder


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


def build_vit(config: EncoderConfig, depth: int) -> Encoder:
    """The first `depth` blocks; norm before pooling, so every block's output is normalised token by token."""
    vit = VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        in_chans=config.in_channels,
        embed_dim=config.width,
        depth=depth,
        num_heads=config.heads,
        mlp_ratio=4.0,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        num_classes=0,
        weight_init="moco",  # of the original MoCo v3; [LW] names none
    )
    assert vit.pos_embed is not None
    stem = PatchStem(vit.patch_embed, vit.pos_embed)
    return Encoder(stem, list(vit.blocks), vit.norm, mean_tokens, nn.Identity(), config.width)
