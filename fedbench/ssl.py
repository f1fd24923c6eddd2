"""What an SSL method is: an online branch (encoder, heads), perhaps a target branch, and a loss over views.

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

Keys of its own are those of a subclass of `SSLConfig`, by which it annotates `config`:

    class WithMargin(SSLConfig):
        margin: PositiveFloat = 0.5

Shapes: B samples, D output dimensions.
"""

import copy
from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any, ClassVar, NotRequired, TypedDict

import torch
from lightning import LightningModule
from torch import Tensor, nn

from fedbench.config.schema import SSLConfig
from fedbench.encoders import Encoder
from fedbench.encoders.tensor_groups import TARGET, is_target
from fedbench.errors import UserError, suggest
from fedbench.plugin_fields import build_plugin
from fedbench.plugins import blamed, load_plugin


class StepOutput(TypedDict):
    """What a training step returns: the loss to minimise and, where there are two views, their projections.

    z1, z2 (B, D) are what terms that align projections are about, and what the effective rank is measured of.
    k1, k2 (B, D), the target branch's of the same views, are for terms that predict one view from the other.
    """

    loss: Tensor
    projections: NotRequired[tuple[Tensor, Tensor]]
    targets: NotRequired[tuple[Tensor, Tensor]]


class SSLMethod(LightningModule):
    """Online branch `encoder`, `projection_head`, `prediction_head`; a subclass adds heads and a loss.

    Only the online branch travels. The target branch, if `add_target` made one, is rebuilt from the received
    model at the start of every client's local training and follows the online branch by momentum. Other tensors
    whose names begin with `target_` stay with the client too.

    Attributes:
        num_views: random views of an image that a step wants.
        takes_crops: whether it wants the small views of `augmentation.local_crops` too.
        chooses_way: whether it says which way a view goes through an encoder that has several (`Encoder.ways`).
        needs: entries of `encoder.transforms` without which it cannot work.
    """

    num_views: ClassVar[int] = 2
    takes_crops: ClassVar[bool] = False
    chooses_way: ClassVar[bool] = False
    needs: ClassVar[tuple[Mapping[str, Any], ...]] = ()

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection_head: nn.Module = nn.Identity()
        self.prediction_head: nn.Module = nn.Identity()
        self.target_encoder: Encoder | None = None
        self.target_projection_head: nn.Module | None = None
        self.momentum = 1.0
        self._moving: tuple[list[Tensor], list[Tensor]] | None = None

    def training_step(self, views: Any, batch_idx: int = 0) -> StepOutput:
        """Loss over `num_views` views (B, C, H, W) of the same samples; small crops come behind them."""
        raise NotImplementedError

    def one_view(self, view: Tensor) -> Tensor:
        """The online branch on one view (B, C, H, W), whose cost the paper's rules count."""
        return self.prediction_head(self.project(view))

    def begin_visit(self, visit: Any) -> None:
        """Before a client's first step: what it is to have of earlier visits; `visit` is a `LocalVisit`."""

    def end_visit(self, visit: Any) -> None:
        """Behind a client's last step: what it keeps for its next visit."""

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


def load_ssl(config: SSLConfig) -> tuple[type[SSLMethod], SSLConfig]:
    """The SSL method's class, and the configuration that it is made from, with keys of its own.

    Raises:
        UserError: nothing has that name, or a key is unknown or of the wrong type.
    """
    cls = load_plugin("ssl", config.name, SSLMethod)
    with blamed(f"ssl={config.name}"):
        own = config_class(cls)
    for key, field in SSLConfig.model_fields.items():
        if own.model_fields[key].default != field.default:
            raise UserError(
                f"ssl={config.name}: {own.__name__} has another default of {key!r}, a key of every method; "
                "allowed: keys of its own under other names"
            )
    for key in config.model_extra or {}:
        if key not in own.model_fields:
            raise UserError(f"ssl.{key}: unknown key; {suggest(key, own.model_fields)}")
    return cls, build_plugin(own, config.model_dump(), f"ssl {config.name!r}", "ssl")


def config_class(cls: type[SSLMethod]) -> type[SSLConfig]:
    """What the method annotates `config` by: the base's keys, and its own."""
    annotation = signature(cls.__init__, eval_str=True).parameters.get("config")
    own = annotation.annotation if annotation else SSLConfig
    return own if isinstance(own, type) and issubclass(own, SSLConfig) else SSLConfig
