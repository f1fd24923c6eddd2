"""Encoders as stem + blocks + norm + pooling."""

from fedbench.config.schema import EncoderConfig
from fedbench.encoders.encoder import Encoder

__all__ = ["Encoder", "build_encoder"]


def build_encoder(config: EncoderConfig, depth: int) -> Encoder:
    """The first `depth` blocks of the configured encoder, initialised from torch's global generator."""
    if config.name == "vit":
        from fedbench.encoders.vit import build_vit

        return build_vit(config, depth)
    from fedbench.encoders.resnet import build_resnet18

    return build_resnet18(config, depth)
