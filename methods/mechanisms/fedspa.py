"""FedSpa (Huang et al. 2022, arXiv:2201.11380): each client trains a sparse model of its own in the global one.

A client has a mask of constant density in each layer. It is sent the entries in its mask, the others being zero
for it, trains those alone, and sends them back; the server averages each entry over the clients that hold it, and
keeps its own value where nobody does. Behind its last step a client prunes the entries of smallest magnitude, at a
rate that falls as a cosine over the run's rounds, and regrows as many where the dense gradient of one batch is
largest: with them it begins its next visit, from the server's values. A client's personal model is the global one
in its mask.

Read: the method in outline. Our reading: the defaults, that each client's first mask is its own, that an entry
does not come back in the visit that prunes it, and densities of layers by ERK (Evci et al. 2020,
arXiv:1911.11134). Ours: ERK spreads the density over the layers of each tensor group alone, so that the form of a
group follows from its own shapes; the mean is over those who hold an entry, by their numbers of samples; weights
of layers are masked, norms, biases and position embeddings are not; a layer exchanges one entry at least, so that
its mask changes in every visit. Left out: what a sparse step would save. Steps are those of the dense model with
gradients masked, and their FLOPs and memory are counted as such, and the gradient for regrowing besides.
"""

from dataclasses import dataclass
from math import cos, pi, prod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedbench.config import Config
from fedbench.encoders.tensor_groups import StateDict
from fedbench.errors import UserError
from fedbench.federation import (
    Codec,
    LocalVisit,
    Mechanism,
    PersonalCodec,
    Specs,
    Strategy,
    TensorSpec,
    Way,
    load_strategy,
)
from fedbench.federation.strategy import active_mechanisms

Density = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class FedSpa(PersonalCodec):
    """Bytes of a layer of n weights, k of them in a mask: 4 k down, 4 k + ceil(n / 8) up, as its mask changes.

    Density 1 is the strategy itself, to the bit; with `prune_rate=0` masks stay, and none travels.
    """

    density: Density = 0.5
    """Share of the weights of a group's layers that a client has."""
    layers: Literal["erk", "uniform"] = "erk"
    """How that is spread: ERK gives small layers, and long thin ones, more; uniform the same to each."""
    prune_rate: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of a layer's entries that a visit of the first round exchanges for others."""

    def check(self, config: Config) -> None:
        """Nothing beside it may keep, send or weigh entries as if all clients had the same."""
        if self.density == 1:
            return
        if self.prune_rate and config.federation.client_memory == "none":
            raise UserError(
                "strategy.fedspa with federation.client_memory=none: a client has to remember its mask; allowed: "
                "federation.client_memory=kept, or strategy.fedspa.prune_rate=0, with masks that never change"
            )
        strategy, name = load_strategy(config.strategy), config.strategy["name"]
        _refuse(strategy, Strategy, OF_STRATEGIES, f"strategy.name={name}")
        for name, other in active_mechanisms(config.strategy).items():
            if type(other) is not type(self):
                _check_beside(name, other)

    def works(self, way: Way) -> bool:
        """Unless clients have all."""
        return self.density < 1

    @property
    def changes_state(self) -> bool:
        """Whether masks change."""
        return self.prune_rate > 0

    def counts(self, specs: Specs) -> dict[str, int]:
        """Entries in a mask, of the layers of a group that are not whole in it."""
        sizes = {key: spec.numel for key, spec in specs.items() if _is_layer(spec.shape)}
        if self.layers == "uniform":
            shares = dict.fromkeys(sizes, self.density)
        else:
            shares = erk({key: specs[key].shape for key in sizes}, self.density)
        counts = {key: max(round(shares[key] * size), 1) for key, size in sizes.items()}
        return {key: count for key, count in counts.items() if count < sizes[key]}

    def wire(self, specs: Specs, way: Way) -> Specs:
        """Of a layer the entries in the mask; what has none as it is. Masks travel as the codec's state."""
        rows = {key: TensorSpec((count,), specs[key].dtype, False) for key, count in self.counts(specs).items()}
        return {**specs, **rows}

    def pack(self, values: StateDict, way: Way, draw: torch.Generator) -> StateDict:
        """Entries in the mask, in their order."""
        return {
            key: value[mask_of(way.state[key], value.shape)] if key in way.state else value.clone()
            for key, value in values.items()
        }

    def unpack(self, packed: StateDict, specs: Specs, way: Way) -> StateDict:
        """Zero but for them."""
        values: StateDict = {}
        for key, spec in specs.items():
            values[key] = packed[key].clone()
            if key in way.state:
                mask = mask_of(way.state[key], spec.shape)
                values[key] = packed[key].new_zeros(spec.shape).masked_scatter(mask, packed[key])
        return values

    def first_state(self, specs: Specs, draw: torch.Generator) -> StateDict:
        """Masks drawn uniformly."""
        state: StateDict = {}
        for key, count in self.counts(specs).items():
            mask = torch.zeros(specs[key].numel, dtype=torch.bool)
            mask[torch.randperm(len(mask), generator=draw)[:count]] = True
            state[key] = bitmap_of(mask)
        return state

    def check_state(self, state: StateDict, specs: Specs) -> None:
        """Each mask has its layer's density."""
        for key, count in self.counts(specs).items():
            has, bits = int(mask_of(state[key], specs[key].shape).sum()), 8 * len(state[key])
            if int(mask_of(state[key], (bits,)).sum()) != has or has != count:
                raise ValueError(f"a mask of {has} entries; the density is that of {count}")

    def holds(self, state: StateDict, specs: Specs) -> StateDict:
        """The masks."""
        return {key: mask_of(bitmap, specs[key].shape) for key, bitmap in state.items()}

    def begin_visit(self, visit: LocalVisit) -> None:
        """Train inside the masks."""
        visit.train_within(self._masks(visit))

    def end_visit(self, visit: LocalVisit) -> None:
        """Prune by magnitude, regrow by gradient."""
        masks = self._masks(visit)
        if not masks or not self.changes_state:
            return
        rate, gradients, weights = self.rate(visit.progress), visit.gradient(), visit.trained
        visit.change_codec_state(
            {key: bitmap_of(exchanged(mask, weights[key], gradients[key], rate)) for key, mask in masks.items()}
        )

    def rate(self, progress: float) -> float:
        """alpha_t = alpha / 2 (1 + cos(pi t / T)), t / T being the share of the rounds that are over."""
        return self.prune_rate / 2 * (1 + cos(pi * progress))

    @staticmethod
    def _masks(visit: LocalVisit) -> StateDict:
        return {key: mask_of(bitmap, visit.trained[key].shape) for key, bitmap in visit.codec_state.items()}


Reasons = dict[tuple[str, ...], str]

# Hooks, and what a plugin that has them all does which is against masks.
OF_STRATEGIES: Reasons = {
    ("aggregate",): "takes a mean that does not know who holds an entry",
    ("end_visit",): "lets clients keep entries that their next masks may not have",
}
OF_MECHANISMS: Reasons = {
    ("end_visit",): "lets clients keep entries that their next masks may not have",
    ("messages",): "sends tensors of all entries beside the model",
    ("receive",): "weighs updates as if each had all entries",
    ("visit_plan", "after_aggregate"): "corrects the mean by who trains a block, not by who holds an entry",
}


def _refuse(plugin: object, base: type, reasons: Reasons, named: str) -> None:
    for hooks, words in reasons.items():
        if all(getattr(type(plugin), hook) is not getattr(base, hook) for hook in hooks):
            raise UserError(f"strategy.fedspa with {named}, which {words}; allowed: without")


def _check_beside(name: str, other: Mechanism) -> None:
    _refuse(other, Mechanism, OF_MECHANISMS, name)
    if isinstance(other, Codec) and (other.order == 0 or other.error_feedback):
        raise UserError(
            f"strategy.fedspa with {name}, a codec that chooses what travels, or sends later what it lost; "
            "allowed: codecs that shorten numbers (quantise, cast), without error_feedback"
        )


def exchanged(mask: Tensor, weight: Tensor, gradient: Tensor, rate: float) -> Tensor:
    """A mask of as many entries: without the share `rate` of smallest magnitude, with those of largest gradient.

    Of equal ones the first; the share is rounded up. No value is read off a tensor: this is traced without any.
    """
    held = mask.sum()
    swapped = (held * rate).ceil().clamp(max=mask.numel() - held)
    kept = mask & (_rank(weight.abs(), mask) < held - swapped)
    return kept | (~mask & (_rank(gradient.abs(), ~mask) < swapped))


def _rank(score: Tensor, among: Tensor) -> Tensor:
    """0 for the largest score of those `among` which it is asked, and so on; the others come behind them."""
    order = score.masked_fill(~among, -1).reshape(-1).sort(descending=True, stable=True).indices
    ranks = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))
    return ranks.reshape(score.shape)


def erk(shapes: dict[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """Densities by layer that are in proportion to sum(shape) / prod(shape), 1 at most, `density` in all."""
    sizes, whole = {key: prod(shape) for key, shape in shapes.items()}, dict[str, float]()
    while rest := shapes.keys() - whole:
        left = density * sum(sizes.values()) - sum(sizes[key] for key in whole)
        scale = left / sum(sum(shapes[key]) for key in rest)
        shares = {key: scale * sum(shapes[key]) / sizes[key] for key in shapes if key in rest}
        if max(shares.values()) <= 1:
            return whole | shares
        whole |= {key: 1.0 for key, share in shares.items() if share > 1}
    return whole


def mask_of(bitmap: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Bool in this shape from its bits."""
    bits = (bitmap[:, None] >> _shifts(bitmap.device)) & 1
    return bits.bool().reshape(-1)[: prod(shape)].reshape(shape)


def bitmap_of(mask: Tensor) -> Tensor:
    """ceil(n / 8) bytes, the last one filled up with zeros."""
    row = torch.nn.functional.pad(mask.reshape(-1), (0, -mask.numel() % 8)).reshape(-1, 8)
    return (row.to(torch.uint8) << _shifts(mask.device)).sum(1, dtype=torch.uint8)


def _shifts(device: torch.device) -> Tensor:
    """The first entry of eight is the highest bit of their byte."""
    return torch.arange(7, -1, -1, dtype=torch.uint8, device=device)


def _is_layer(shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a layer's weight: no norm, no bias, no position embedding of shape (1, N, D)."""
    return len(shape) > 1 and shape[0] > 1
