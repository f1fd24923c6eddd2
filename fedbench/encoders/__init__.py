"""Encoders as stem + blocks + norm + pooling; each is a module with a function `build`, found by its name."""

from importlib import import_module

from fedbench.config.schema import EncoderConfig
from fedbench.encoders.encoder import Encoder

__all__ = ["Encoder", "build_encoder"]


def build_encoder(config: EncoderConfig, depth: int) -> Encoder:
    """The first `depth` blocks of the configured encoder, initialised from torch's global generator."""
    return import_module(f"fedbench.encoders.{config.name}").build(config, depth)
