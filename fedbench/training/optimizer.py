"""The optimizer of a local step, and how its learning rate follows the rounds."""

from collections.abc import Iterable
from math import cos, pi

import torch
from timm.optim.lars import Lars
from torch import nn

from fedbench.config.schema import OptimizerConfig


def build_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig, lr_scale: float = 1.0
) -> torch.optim.Optimizer:
    """A fresh one: a client's state begins anew with every visit ([LW] Sec. 4.1).

    Args:
        parameters: those under training; frozen ones have no state and no weight decay.
        lr_scale: what the schedule makes of the learning rate in this round.
    """
    lr, decay = config.lr * lr_scale, config.weight_decay
    if config.name == "sgd":
        return torch.optim.SGD(parameters, lr, config.momentum, weight_decay=decay, fused=True)
    if config.name == "lars":
        # biases and norms have one dimension: no decay, and no layer's own rate (You et al. 2017; BYOL, Appendix)
        matrices, vectors = list[nn.Parameter](), list[nn.Parameter]()
        for parameter in parameters:
            (matrices if parameter.ndim > 1 else vectors).append(parameter)
        groups = [
            {"params": matrices, "weight_decay": decay, "always_adapt": True},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return Lars(groups, lr, config.momentum, foreach=False)
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, fused=True)


def lr_scale(config: OptimizerConfig, round_index: int, rounds: int, round_in_stage: int, in_stage: int) -> float:
    """What the schedule makes of the learning rate in a round (all 0-based), of `rounds` and `in_stage` rounds.

    cosine: (1 + cos(pi r / R)) / 2, from 1 in the first round towards 0 behind the last.
    """
    if config.schedule == "cosine":
        return (1 + cos(pi * round_index / rounds)) / 2
    if config.schedule == "cosine_per_stage":
        return (1 + cos(pi * round_in_stage / in_stage)) / 2
    return 1.0
