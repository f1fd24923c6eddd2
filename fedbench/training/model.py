"""The model of a stage: an SSL method around an encoder of some depth, and what of it is frozen."""

from collections.abc import Set

import torch

from fedbench.config.schema import Config
from fedbench.encoders import initial_encoder
from fedbench.encoders.tensor_groups import group_of, is_target
from fedbench.plugins import load_plugin
from fedbench.random import stream
from fedbench.ssl import SSLMethod


def build_model(config: Config, depth: int) -> SSLMethod:
    """A model whose encoder has `depth` blocks; its initial values depend on the seed and the tensor group alone.

    Block i and the heads start alike under every strategy and at every stage, so that what differs between two
    strategies of one seed is not where they began.
    """
    method = load_plugin("ssl", config.ssl.name, SSLMethod)
    encoder = initial_encoder(config.encoder, depth, config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(config.seed, "init", "heads"))
        return method(encoder, config.ssl)  # type: ignore[call-arg]


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
