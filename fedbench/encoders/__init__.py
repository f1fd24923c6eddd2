"""Encoders as stem + blocks + norm + pooling; each is a module with a function `build`, found by its name."""

from importlib import import_module

import torch

from fedbench.config.schema import EncoderConfig
from fedbench.encoders.encoder import Encoder
from fedbench.random import stream

__all__ = ["Encoder", "build_encoder", "initial_encoder"]


def build_encoder(config: EncoderConfig, depth: int) -> Encoder:
    """The first `depth` blocks of the configured encoder, initialised from torch's global generator.

    The whole encoder is drawn whatever `depth` is: from one state of the generator, stem and block i get the same
    values at every depth.
    """
    return import_module(f"fedbench.encoders.{config.name}").build(config, depth)


def initial_encoder(config: EncoderConfig, depth: int, seed: int) -> Encoder:
    """The encoder with which every run of `seed` begins, whatever its strategy: block i is the floor's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "init", "encoder"))
        return build_encoder(config, depth)
