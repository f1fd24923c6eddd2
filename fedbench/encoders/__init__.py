"""Encoders as stem + blocks + norm + pooling; each is a plugin, found by its name."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from fedbench.config.schema import ENCODER_KEYS, OF_SOME_ENCODERS, WITH_ALL_KEYS, EncoderConfig
from fedbench.encoders.architecture import Architecture, ImageShape
from fedbench.encoders.encoder import Encoder
from fedbench.encoders.given import start_from
from fedbench.encoders.tensor_groups import GIVEN, is_given
from fedbench.encoders.transform import Transform
from fedbench.encoders.twin import Twin
from fedbench.errors import UserError
from fedbench.plugin_fields import build_plugin, field_names, fields_as_tree
from fedbench.plugins import blamed, load_plugin
from fedbench.random import stream

__all__ = [
    "Architecture",
    "Encoder",
    "ImageShape",
    "Outline",
    "Transform",
    "Twin",
    "build_encoder",
    "image_shape",
    "initial_encoder",
    "load_architecture",
    "load_transforms",
    "num_blocks",
    "outline",
    "whole_encoder",
]


def load_architecture(config: EncoderConfig) -> Architecture:
    """The encoder's plugin, with its fields, for images of the configured shape.

    Raises:
        UserError: a key is unknown, not this encoder's, of the wrong type, or does not fit another.
    """
    cls = load_plugin("encoders", config.name, Architecture)  # type: ignore[type-abstract]
    own, keys = field_names(cls), config.model_dump()
    others = ENCODER_KEYS | (OF_SOME_ENCODERS - set(own) if config.name in WITH_ALL_KEYS else set())
    fields = {key: value for key, value in keys.items() if key not in others}
    architecture = build_plugin(cls, fields, f"encoder {config.name!r}", "encoder", sorted(ENCODER_KEYS))
    architecture.check(image_shape(config))
    return architecture


def load_transforms(config: EncoderConfig) -> list[Transform]:
    """What changes the encoder's layers, in its order.

    Raises:
        UserError: nothing has that name, or a key is unknown or of the wrong type.
    """
    found = []
    for number, given in enumerate(config.transforms or ()):
        cls = load_plugin("transforms", given["name"], Transform)  # type: ignore[type-abstract]
        fields = {key: value for key, value in given.items() if key != "name"}
        what, section = f"transform {given['name']!r}", f"encoder.transforms.{number}"
        found.append(build_plugin(cls, fields, what, section))
    return found


def whole_encoder(config: EncoderConfig) -> EncoderConfig:
    """The section `encoder` with every default of its plugins filled in: two ways to write the same are one.

    Raises:
        UserError: as `load_architecture` and `load_transforms` do.
    """
    tree = {key: value for key, value in config.model_dump().items() if value is not None}
    if config.name not in WITH_ALL_KEYS:
        tree |= _fields(load_architecture(config))
    if config.transforms is not None:
        transforms = zip(config.transforms, load_transforms(config), strict=True)
        tree["transforms"] = [{"name": given["name"], **_fields(one)} for given, one in transforms]
    return EncoderConfig.model_validate(tree)


def _fields(plugin: object) -> dict[str, Any]:
    """Its fields as plain values, without those that are null."""
    return {key: value for key, value in fields_as_tree(plugin).items() if value is not None}


def image_shape(config: EncoderConfig) -> ImageShape:
    """Of the encoder's input."""
    return ImageShape(config.in_channels, config.image_size)


@dataclass(frozen=True)
class Outline:
    """What is known of an encoder before it has values.

    Attributes:
        num_blocks: of the whole encoder.
        num_weights: of the whole encoder.
        keeps_shape: whether every block gives back the shape that it takes, so that it can be left out.
        num_towers: networks side by side.
    """

    num_blocks: int
    num_weights: int
    keeps_shape: bool
    num_towers: int


def outline(config: EncoderConfig) -> Outline:
    """Of the whole encoder; nothing is computed, and no memory taken for its values.

    Raises:
        UserError: as `load_architecture` does, or the plugin's code fails.
    """
    return _outline(config.model_dump_json())


def num_blocks(config: EncoderConfig) -> int:
    """Blocks of the whole encoder."""
    return outline(config).num_blocks


@cache
def _outline(config: str) -> Outline:
    parsed = EncoderConfig.model_validate_json(config)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            with torch.device("meta"):
                return _look(parsed)
        except UserError:  # code that computes with values cannot do without; what else is wrong is wrong here too
            return _look(parsed)


def _look(config: EncoderConfig) -> Outline:
    encoder = _whole(config)
    with blamed(f"encoder {config.name!r}"):
        hidden = encoder.stem(torch.empty(2, *config.image_shape))
        shapes = [hidden.shape]
        for block, width in zip(encoder.blocks, encoder.widths, strict=True):
            hidden = block(hidden)
            shapes.append(hidden.shape)
            feature = encoder.pool(encoder.norm(hidden))
            if feature.shape != (2, width):
                raise UserError(
                    f"encoder {config.name!r}: behind block {len(shapes) - 1}, norm and pooling of 2 images give "
                    f"{tuple(feature.shape)}; allowed: (2, {width}), as its widths say"
                )
    return Outline(
        len(encoder.blocks),
        sum(weight.numel() for weight in encoder.parameters()),
        len(set(shapes)) == 1,
        encoder.num_towers,
    )


def build_encoder(config: EncoderConfig, depth: int) -> Encoder:
    """The first `depth` blocks of the configured encoder, initialised from torch's global generator.

    The whole encoder is drawn whatever `depth` is: from one state of the generator, stem and block i get the same
    values at every depth. Its values are not those of `encoder.init`; `initial_encoder` has them.
    """
    encoder = _whole(config)
    encoder.shorten(depth)
    return encoder


def initial_encoder(config: EncoderConfig, depth: int, seed: int) -> Encoder:
    """The encoder with which every run of `seed` begins, whatever its strategy: block i is the floor's.

    Raises:
        UserError: `encoder.init` is not there, or does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "init", "encoder"))
        encoder = _whole(config, config.init)
        encoder.shorten(depth)
        return encoder


def _whole(config: EncoderConfig, init: str | None = None) -> Encoder:
    architecture, shape = load_architecture(config), image_shape(config)
    with blamed(f"encoder {config.name!r}"):
        encoder = architecture.build(shape)
    _check(encoder, config.name)
    if init is not None:
        start_from(encoder, architecture.twin(shape), init)
    for transform, given in zip(load_transforms(config), config.transforms or (), strict=True):
        with blamed(f"transform {given['name']!r}"):
            transform.apply(encoder)
    return encoder


def _check(encoder: object, name: str) -> None:
    """UserError: what a plugin built is no encoder that can be taken apart."""
    wrong = ""
    if not isinstance(encoder, Encoder):
        wrong = f"build returned {encoder!r}; allowed: an Encoder"
    elif not encoder.blocks or len(encoder.blocks) != len(encoder.widths):
        wrong = (
            f"{len(encoder.blocks)} blocks with {len(encoder.widths)} widths; allowed: one width for each block"
        )
    elif reserved := [key for key in encoder.state_dict() if is_given(f"encoder.{key}")]:
        wrong = f"{reserved[0]!r}; allowed: names without `.{GIVEN}.`, which stands for weights that nobody trains"
    if wrong:
        raise UserError(f"encoder {name!r}: {wrong}")
