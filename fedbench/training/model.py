"""The model of a stage: an SSL method around an encoder of some depth, and what of it is frozen."""

import os
from collections.abc import Set

import torch

from fedbench.config.schema import Config
from fedbench.encoders import Encoder, initial_encoder, outline
from fedbench.encoders.tensor_groups import group_of, is_target, online_key
from fedbench.errors import UserError
from fedbench.random import stream
from fedbench.ssl import SSLMethod, load_ssl


def build_model(config: Config, depth: int) -> SSLMethod:
    """A model whose encoder has `depth` blocks; its initial values depend on the seed and the tensor group alone.

    Block i and the heads start alike under every strategy and at every stage, so that what differs between two
    strategies of one seed is not where they began.

    Raises:
        UserError: the SSL method has another encoder, or two of its tensor groups share memory; or the machine
            has no memory for as many values.
    """
    _check_memory(config)
    method, own = load_ssl(config.ssl)
    encoder = initial_encoder(config.encoder, depth, config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(config.seed, "init", "heads"))
        model = method(encoder, own)  # type: ignore[call-arg]
    _check(model, encoder, config.ssl.name)
    return model


def _check_memory(config: Config) -> None:
    """Before anything is allocated: where memory runs out later, the system ends the process without a word."""
    hidden, encoder = config.ssl.hidden_dim, outline(config.encoder).num_weights
    needed = 2 * torch.float32.itemsize * (encoder + hidden * (hidden + config.ssl.output_dim))
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        keys = {key: value for key, value in config.encoder.model_dump().items() if key in ("width", "depth")}
        size = "".join(f", encoder.{key}={value}" for key, value in keys.items())
        raise UserError(
            f"encoder={config.encoder.name}{size}, ssl.hidden_dim={hidden}: the values, twice, are "
            f"{needed / 1e9:.1f} GB, this machine has {there / 1e9:.1f} GB of memory; allowed: a smaller model"
        )


def _check(model: SSLMethod, encoder: Encoder, name: str) -> None:
    if model.encoder is not encoder:
        raise UserError(
            f"ssl={name}: its encoder is not the configured one; allowed: the one that it is handed, by "
            "super().__init__(encoder)"
        )
    if len(encoder.ways.names) > 1 and not model.chooses_way:
        raise UserError(
            f"ssl={name} takes one way through an encoder, and encoder.transforms makes "
            f"{' and '.join(encoder.ways.names)}; allowed: an SSL method that takes each, or one way alone"
        )
    owner: dict[int, str] = {}  # memory -> the first key there
    for key, value in model.state_dict(keep_vars=True).items():
        first = owner.setdefault(value.untyped_storage().data_ptr(), key) if value.numel() else key
        if (is_target(first), group_of(online_key(first))) != (is_target(key), group_of(online_key(key))):
            raise UserError(
                f"ssl={name}: {first!r} and {key!r} are one tensor; allowed: tensor groups that share nothing, "
                "because each travels, is trained and is frozen by itself"
            )


def freeze_all_but(model: SSLMethod, trained_groups: Set[str]) -> None:
    """Train `trained_groups`; the rest has no gradient, and its BatchNorm and dropout are in eval mode.

    The target branch never has a gradient; its modules take the mode of the online branch's, so that frozen
    blocks compute the same in both.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_target(name) and group_of(name) in trained_groups)
    model.train()
    for encoder in (model.encoder, model.target_encoder):
        if encoder is not None:
            for group, part in encoder.parts().items():
                part.train(group in trained_groups)
