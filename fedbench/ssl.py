"""What an SSL method is: an online branch (encoder, heads), perhaps a target branch, and a loss over two views.

A whole method, on heads from lightly:

    class SimSiam(SSLMethod):
        def __init__(self, encoder: Encoder, config: SSLConfig) -> None:
            super().__init__(encoder)
            self.projection_head = SimSiamProjectionHead(encoder.feature_dim, config.hidden_dim, config.output_dim)
            self.prediction_head = SimSiamPredictionHead(config.output_dim, config.hidden_dim, config.output_dim)

        def training_step(self, views: tuple[Tensor, Tensor], batch_idx: int = 0) -> StepOutput:
            z1, z2 = (self.project(view) for view in views)
            ...
            return {"loss": loss, "projections": (z1, z2)}

Shapes: B samples, D output dimensions.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import TypedDict

import torch
from lightning import LightningModule
from torch import Tensor, nn

from fedbench.encoders import Encoder
from fedbench.encoders.tensor_groups import TARGET, is_target


class StepOutput(TypedDict):
    """What a training step returns: the loss to minimise and the projections z1, z2 (B, D) of the two views."""

    loss: Tensor
    projections: tuple[Tensor, Tensor]


class SSLMethod(LightningModule):
    """Online branch `encoder`, `projection_head`, `prediction_head`; a subclass adds heads and a loss.

    Only the online branch travels. The target branch, if `add_target` made one, is rebuilt from the received
    model at the start of every client's local training and follows the online branch by momentum.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection_head: nn.Module = nn.Identity()
        self.prediction_head: nn.Module = nn.Identity()
        self.target_encoder: Encoder | None = None
        self.target_projection_head: nn.Module | None = None
        self.momentum = 1.0
        self._moving: tuple[list[Tensor], list[Tensor]] | None = None

    def training_step(self, views: tuple[Tensor, Tensor], batch_idx: int = 0) -> StepOutput:
        """Loss over two views (B, C, H, W) of the same samples."""
        raise NotImplementedError

    def project(self, view: Tensor) -> Tensor:
        """z = H(F(x)), (B, C, H, W) -> (B, D)."""
        return self.projection_head(self.encoder(view))

    @torch.no_grad()
    def target_project(self, view: Tensor) -> Tensor:
        """k = H_k(F_k(x)), without gradient."""
        assert self.target_encoder is not None
        assert self.target_projection_head is not None
        return self.target_projection_head(self.target_encoder(view))

    def add_target(self, momentum: float) -> None:
        """Give the method a target branch; call it when the heads exist."""
        self.momentum = momentum
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.target_projection_head = copy.deepcopy(self.projection_head).requires_grad_(False)

    @torch.no_grad()
    def rebuild_target(self) -> None:
        """F_k, H_k <- F, H, parameters and buffers."""
        for online, target in self._branch_pairs():
            ours, theirs = ([*module.parameters(), *module.buffers()] for module in (online, target))
            torch._foreach_copy_(theirs, ours)
        self._moving = None

    @torch.no_grad()
    def update_target(self) -> None:
        """w_k <- m w_k + (1 - m) w over the trained parameters; frozen ones are equal and stay so, bit for bit."""
        if self._moving is None:  # to find them takes longer than to move them
            self._moving = self._trained_pairs()
        target_ws, online_ws = self._moving
        if target_ws:
            torch._foreach_lerp_(target_ws, online_ws, 1 - self.momentum)

    def target_follows(self) -> bool:
        """Whether the target's frozen blocks are the online branch's: a subclass with other rules may differ."""
        own = (type(self).rebuild_target, type(self).update_target)
        return own == (SSLMethod.rebuild_target, SSLMethod.update_target)

    def online_state(self) -> dict[str, Tensor]:
        """Parameters and buffers that are sent and averaged: the state without the target branch."""
        return {key: value for key, value in self.state_dict().items() if not is_target(key)}

    @torch.no_grad()
    def load_online(self, state: Mapping[str, Tensor]) -> None:
        """Copy received tensors over the online branch's; keys that are not given stay as they are."""
        own = self.online_state()
        assert state.keys() <= own.keys(), f"not in the model: {state.keys() - own.keys()}"
        torch._foreach_copy_([own[key] for key in state], list(state.values()))

    def target_state(self) -> dict[str, Tensor]:
        """Parameters and buffers of the target branch, by the online branch's key; empty if there is none."""
        own = self.state_dict()
        return {key: own[f"{TARGET}{key}"] for key in own if f"{TARGET}{key}" in own}

    @torch.no_grad()
    def load_target(self, state: Mapping[str, Tensor]) -> None:
        """Copy tensors, by the online branch's key, over the target branch's."""
        own = self.target_state()
        if state:
            torch._foreach_copy_([own[key] for key in state], list(state.values()))

    def _trained_pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters w_k, and the w that they follow."""
        pairs = [
            (target_w, online_w)
            for online, target in self._branch_pairs()
            for online_w, target_w in zip(online.parameters(), target.parameters(), strict=True)
            if online_w.requires_grad
        ]
        return [target_w for target_w, _ in pairs], [online_w for _, online_w in pairs]

    def _branch_pairs(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        if self.target_encoder is not None and self.target_projection_head is not None:
            yield self.encoder, self.target_encoder
            yield self.projection_head, self.target_projection_head
