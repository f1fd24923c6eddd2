"""Any plain vision transformer of timm, by its name there; nothing is downloaded, see `encoder.init`."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import timm
import torch
from pydantic import Field, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fedbench.config.schema import MAX_SIZE
from fedbench.encoders import Architecture, Encoder, ImageShape, Twin
from fedbench.errors import UserError, suggest

from .vit import positions_for


class TokenStem(nn.Module):
    """Everything of timm's model before its blocks: images (B, C, H, W) -> tokens (B, P + T, D).

    P tokens that are no patch (class, registers) come first.
    """

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.patch_embed, self.norm_pre = vit.patch_embed, vit.norm_pre
        self.cls_token, self.reg_token, self.pos_embed = vit.cls_token, vit.reg_token, vit.pos_embed
        self.no_embed_class = vit.no_embed_class  # the position embedding is of patches only

    def forward(self, images: Tensor) -> Tensor:
        """Tokens with their positions added."""
        tokens_BTD = self.patch_embed(images)
        if tokens_BTD.ndim == 4:  # of models for images of any size: (B, H, W, D)
            tokens_BTD = tokens_BTD.flatten(1, 2)
        others = [token for token in (self.cls_token, self.reg_token) if token is not None]
        count = 0 if self.no_embed_class else sum(token.shape[1] for token in others)
        positions = None if self.pos_embed is None else positions_for(self.pos_embed, tokens_BTD, count)
        if positions is not None and self.no_embed_class:
            tokens_BTD = tokens_BTD + positions
        tokens_BTD = torch.cat([*(one.expand(len(images), -1, -1) for one in others), tokens_BTD], dim=1)
        if positions is not None and not self.no_embed_class:
            tokens_BTD = tokens_BTD + positions
        return self.norm_pre(tokens_BTD)


def first_token(tokens_BTD: Tensor) -> Tensor:
    """The class token's, (B, T, D) -> (B, D)."""
    return tokens_BTD[:, 0]


def mean_patch(tokens_BTD: Tensor, others: int) -> Tensor:
    """The mean over the tokens that are patches, (B, T, D) -> (B, D)."""
    return tokens_BTD[:, others:].mean(dim=1)


@dataclass(frozen=True)
class TimmViT(Architecture):
    """Blocks, tokens, initial values and pooling are timm's; `image_size` counts, whatever the name says.

    Refused are models that are more than stem, blocks, norm and the pooling of a token or a mean: with attention
    pooling, a norm behind the pooling, or of another class than timm's VisionTransformer.
    """

    model: Annotated[str, Field(max_length=100)] = "vit_tiny_patch16_224"
    """Name of the model, `timm.list_models('vit*')` shows them."""
    patch_size: Annotated[PositiveInt, Field(le=MAX_SIZE)] | None = None
    """Pixels, a divisor of `image_size`; null: the model's own."""

    def check(self, images: ImageShape) -> None:
        """The name is known."""
        if not timm.is_model(self.model):  # nor a place from which timm would download
            known = timm.list_models(["vit_*", "deit*"])
            close = [name for name in known if name.startswith(self.model[:8])] or known
            raise UserError(f"encoder.model={self.model!r}; {suggest(self.model, close[:20])}, and others of timm")

    def build(self, images: ImageShape) -> Encoder:
        """timm's model, taken apart."""
        vit: Any
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an old name is told by a newer one
                vit = timm.create_model(self.model, pretrained=False, **self._arguments(images))
        except (TypeError, RuntimeError) as error:  # it takes other arguments; its weights have no such name
            raise UserError(f"encoder.model={self.model}: {error}; allowed: a vision transformer") from error
        self._check_parts(vit)
        vit.patch_embed.strict_img_size = False
        if images.size % vit.patch_embed.patch_size[0]:
            raise UserError(
                f"encoder.image_size={images.size} is not divisible by the patches of {self.model}, "
                f"{vit.patch_embed.patch_size[0]} pixels; allowed: a patch_size that divides image_size"
            )
        blocks = list(vit.blocks)
        return Encoder(TokenStem(vit), blocks, vit.norm, self._pool(vit), [vit.embed_dim] * len(blocks))

    def _check_parts(self, vit: Any) -> None:
        wrong = ""
        if type(vit) is not VisionTransformer:
            wrong = f"is a {type(vit).__name__}"
        elif vit.attn_pool is not None or vit.global_pool not in ("token", "avg"):
            wrong = f"pools by {vit.global_pool!r}"
        elif not isinstance(vit.fc_norm, nn.Identity):
            wrong = "has a norm behind its pooling"
        if wrong:
            raise UserError(
                f"encoder.model={self.model} {wrong}; allowed: vision transformers that end in a norm and the "
                "pooling of a token or a mean, such as vit_small_patch16_224"
            )

    def _pool(self, vit: Any) -> Callable[[Tensor], Tensor]:
        if vit.global_pool == "token":
            return first_token
        return partial(mean_patch, others=vit.num_prefix_tokens)

    def twin(self, images: ImageShape) -> Twin:
        """timm's model itself."""
        arguments = self._arguments(images)
        words = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        code = f"import timm\nmodel = timm.create_model({self.model!r}, {words})"
        return Twin("timm", {"model_name": self.model, **arguments}, code, {"stem.": ""})

    def _arguments(self, images: ImageShape) -> dict[str, Any]:
        size = {} if self.patch_size is None else {"patch_size": self.patch_size}
        return {"num_classes": 0, "img_size": images.size, "in_chans": images.channels, **size}
