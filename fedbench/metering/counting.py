"""The arithmetic of the conventions; `fedbench.conventions` has them in words."""

from collections import Counter
from collections.abc import Iterable, Mapping, Set

import torch
from torch import nn

from fedbench.conventions import ConventionName
from fedbench.encoders.tensor_groups import HEADS, block_groups, is_block
from fedbench.metering.meter import Meter
from fedbench.ssl import SSLMethod


def paper_epoch_macs(
    macs: Mapping[str, int], trained_groups: Set[str], active: Iterable[int], convention: ConventionName
) -> int:
    """Multiply-accumulates that a paper's rule counts per view, sample and epoch, from `forward_macs_by_group`."""
    run = block_groups(active)
    counted = {group for group in macs if group in run or not is_block(group)}
    if convention == "paper-v3":
        counted &= run
    return sum(macs[group] * (3 if group in trained_groups else 1) for group in counted)


def forward_macs_by_group(model: SSLMethod, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """MACs of one view (C, H, W) of one sample through encoder and heads, by tensor group; LayerNorm 5 an element.

    BatchNorm, activations, softmax and additions are not counted. The model is left as it was.
    """
    meter, norms = Meter({}), Counter[str]()
    parts = model.encoder.parts() | {HEADS: model.projection_head, f" {HEADS}": model.prediction_head}
    hooks = [_announce(meter, group.strip(), part) for group, part in parts.items()]
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            hooks.append(
                module.register_forward_hook(lambda _, __, out: norms.update({meter.phase: 5 * out.numel()}))
            )
    training = {module: module.training for module in model.modules()}
    model.eval()  # one sample has no batch statistics
    with meter, torch.no_grad():
        model.one_view(torch.zeros(1, *image_shape))
    for hook in hooks:
        hook.remove()
    for module, mode in training.items():
        module.training = mode
    return {group.strip(): meter.flops[group.strip()] // 2 + norms[group.strip()] for group in parts}


def _announce(meter: Meter, group: str, part: nn.Module) -> torch.utils.hooks.RemovableHandle:
    def enter(*_: object) -> None:
        meter.phase = group

    return part.register_forward_pre_hook(enter)
