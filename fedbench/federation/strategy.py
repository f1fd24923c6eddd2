"""What a federation strategy is. A whole one, in a file of its own:

    @dataclass(frozen=True)
    class FedProx(Strategy):
        proximal_mu: float = 0.01

        def plan(self, stage: int, num_blocks: int) -> StagePlan:
            return StagePlan(num_blocks, trainable=range(num_blocks), upload=range(num_blocks))

        def local_loss(self, step: LocalStep) -> Tensor | None:
            pulls = [(w - step.received[name]).square().sum() for name, w in step.trained.items()]
            return self.proximal_mu / 2 * torch.stack(pulls).sum()

Its fields are its configuration: `strategy={name: path/to/fedprox.py, proximal_mu: 0.1}`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from fedbench.encoders import load_transforms
from fedbench.encoders.tensor_groups import group_of, in_block_before, is_given, is_in_block
from fedbench.errors import UserError, shown
from fedbench.federation.mechanism import Mechanism
from fedbench.federation.plan import StagePlan, split_rounds
from fedbench.plugin_fields import FIELDS, build_plugin, field_names
from fedbench.plugins import builtin_files, entry_points, is_place, load_plugin, short_name

if TYPE_CHECKING:
    from torch import Tensor

    from fedbench.config.schema import Config
    from fedbench.federation.aggregation import ServerState
    from fedbench.federation.turn import Turn
    from fedbench.training.local import LocalStep
    from fedbench.training.visit import LocalVisit

    StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class ClientUpdate:
    """What the server decoded from a client's upload.

    Attributes:
        client: its number, 0-based.
        num_samples: |D^n|.
        state: the uploaded tensors, by key of the model's online state.
        messages: what travelled beside them, by key on the wire.
        holds: bool, where the client has entries of its own, for tensors of which it has not all; elsewhere
            `state` has the server's values.
    """

    client: int
    num_samples: int
    state: StateDict
    messages: StateDict = field(default_factory=dict)
    holds: StateDict = field(default_factory=dict)


@dataclass(frozen=True)
class Strategy(ABC):
    """A row of [LW] Table 1. `plan` is required; the rest has the defaults of federated averaging."""

    __pydantic_config__: ClassVar[ConfigDict] = FIELDS

    @abstractmethod
    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        """The plan of `stage` (1-based) for an encoder of `num_blocks` blocks."""

    def num_stages(self, num_blocks: int) -> int:
        """Stages S of the whole training; one unless the encoder grows."""
        return 1

    def check(self, config: Config) -> None:
        """Refuse a configuration with which the strategy cannot work, by a `UserError`."""
        return

    def rounds_per_stage(self, rounds: int, num_stages: int) -> Sequence[int]:
        """R_s where `federation.rounds_per_stage` does not name them: as many for each, the rest for the last."""
        return split_rounds(rounds, num_stages)

    def clients(self, round_index: int, there: int) -> Sequence[int] | None:
        """Clients of a round, of the first `there`; None: all, or `federation.participants` drawn uniformly."""
        return None

    def begins_anew(self, stage: int) -> frozenset[str]:
        """Tensor groups whose trained values are discarded when a stage begins: they take `start_stage`'s."""
        return frozenset()

    def start_stage(self, stage: int, initial: StateDict, current: StateDict) -> StateDict:
        """Values for the model of a stage: `initial` is random; `current`, the server's, wins where both exist."""
        return initial

    def visit_plan(self, plan: StagePlan, turn: Turn) -> StagePlan:
        """The stage's plan narrowed for one client in one round: less is run, trained or uploaded."""
        return plan

    def begin_visit(self, visit: LocalVisit) -> None:
        """Before a client's first step: where it starts from, what it is to have of earlier visits."""
        return

    def end_visit(self, visit: LocalVisit) -> None:
        """Behind a client's last step: what it keeps for its next visit."""
        return

    def local_loss(self, step: LocalStep) -> Tensor | None:
        """A term added to the SSL loss, or None."""
        return None

    def aggregate(self, updates: Iterable[ClientUpdate], server: ServerState) -> StateDict:
        """The server's new values from this round's updates, which arrive one by one.

        The clients train while `updates` is consumed, so that one update is in memory at a time.
        An empty result (no client returned) keeps the model.
        """
        return weighted_mean(updates)


@dataclass(frozen=True)
class GrowingStrategy(Strategy):
    """A strategy whose encoder grows by `blocks_per_stage` blocks a stage; the last stage takes the rest."""

    blocks_per_stage: Annotated[int, Field(ge=1, le=1_000)] = 1
    """Blocks that a stage adds; [LW] Table 3 varies this."""
    init: Literal["random", "copy_previous"] = "random"
    """Values of a new block at the start of its stage: [LW] v4 random, [LW] v3 the block before it."""

    def num_stages(self, num_blocks: int) -> int:
        """S = blocks / blocks per stage, rounded up."""
        return ceil(num_blocks / self.blocks_per_stage)

    def newest_blocks(self, stage: int, num_blocks: int) -> range:
        """L_s: the blocks that stage `stage` (1-based) adds."""
        start = (stage - 1) * self.blocks_per_stage
        return range(start, min(start + self.blocks_per_stage, num_blocks))

    def check(self, config: Config) -> None:
        """A new block cannot start both from given weights and from the block before it."""
        kept = any(transform.keeps_weights for transform in load_transforms(config.encoder))
        if self.init == "copy_previous" and config.encoder.init and not kept:
            raise UserError(
                f"encoder.init={config.encoder.init!r} with strategy.init=copy_previous, which would overwrite it "
                "block by block; allowed: strategy.init=random (where a block has no other values, encoder.init's)"
            )

    def start_stage(self, stage: int, initial: StateDict, current: StateDict) -> StateDict:
        """`copy_previous`: a new block starts as the one `blocks_per_stage` before it, if of equal shape."""
        if self.init == "random":
            return initial
        return initial | _copied(initial, current, self.blocks_per_stage)


def _copied(initial: StateDict, current: StateDict, distance: int) -> StateDict:
    """Values for the new blocks of `initial`, taken from the blocks of `current` that stand `distance` before."""
    new_blocks = {
        group_of(key) for key in initial if is_in_block(key) and key not in current and not is_given(key)
    }
    sources = {key: in_block_before(key, distance) for key in initial if group_of(key) in new_blocks}
    unequal = {
        group_of(key)
        for key, source in sources.items()
        if source not in current or current[source].shape != initial[key].shape
    }
    return {key: current[source] for key, source in sources.items() if group_of(key) not in unequal}


def weighted_mean(updates: Iterable[ClientUpdate]) -> StateDict:
    """M <- sum_n w_n M^n with w_n = |D^n| / sum_m |D^m|  ([LW] Algorithm 1, lines 8 and 10).

    The sums are over the clients that sent the entry: who did not run a block has no say in it, nor has who does
    not hold the entry (`ClientUpdate.holds`). What nobody holds stays what it was.
    A running sum in float64: the mean of equal values is that value, bit for bit. Integer buffers
    (BatchNorm's step counter) are rounded.
    """
    sums: StateDict = {}
    dtypes: dict[str, Any] = {}
    weights: dict[str, Any] = {}  # numbers of samples, by entry where not all hold it
    absent: StateDict = {}  # values of clients that do not hold all of a tensor
    for update in updates:
        for key, value in update.state.items():
            weight: Any = update.num_samples
            if key in update.holds:
                weight, absent[key] = weight * update.holds[key].double(), value
            weights[key] = weights.get(key, 0) + weight
            term = value.double() * weight
            sums[key] = sums[key].add_(term) if key in sums else term
            dtypes[key] = value.dtype
    return {key: _cast(_mean(total, weights[key], absent.get(key)), dtypes[key]) for key, total in sums.items()}


def _mean(total: Tensor, weight: Any, absent: Tensor | None) -> Tensor:
    """Of each entry over those who hold it; where nobody does, what it was, which `absent` has there."""
    mean: Tensor = total / weight
    return mean if absent is None else mean.where(weight > 0, absent.double())


def _cast(mean: Tensor, dtype: Any) -> Tensor:
    return mean.to(dtype) if dtype.is_floating_point else mean.round().to(dtype)


def load_strategy(config: Mapping[str, Any]) -> Strategy:
    """The strategy of `{"name": ..., fields ...}`; keys that name a mechanism are left to `load_mechanisms`.

    Raises:
        UserError: the name is unknown, or a field is unknown or of the wrong type.
    """
    cls = load_plugin("strategies", config["name"], Strategy)  # type: ignore[type-abstract]
    own = {key: value for key, value in config.items() if key not in {"name", "preset", *_mechanisms(config, cls)}}
    return build_plugin(cls, own, f"strategy {config['name']!r}", "strategy", mechanism_names())


def load_mechanisms(config: Mapping[str, Any]) -> list[Mechanism]:
    """The mechanisms that a strategy's configuration switches on, in the order of their names."""
    return list(active_mechanisms(config).values())


def active_mechanisms(config: Mapping[str, Any]) -> dict[str, Mechanism]:
    """Name -> mechanism, of those that a strategy's configuration switches on, in the order of their short names.

    `true` and `{}` stand for the defaults, `false` and `null` for off.

    Raises:
        UserError: a field is unknown or of the wrong type, or two files have one name.
    """
    cls = load_plugin("strategies", config["name"], Strategy)  # type: ignore[type-abstract]
    found: dict[str, Mechanism] = {}
    names = sorted(_mechanisms(config, cls), key=short_name)  # their order is no matter of where a file lies
    for one, other in pairwise(names):
        if short_name(one) == short_name(other):
            raise UserError(
                f"strategy: {one!r} and {other!r} are both called {short_name(one)}; allowed: one of them"
            )
    for name in names:
        value = {} if config[name] is True else config[name]
        if value is None or value is False:
            continue
        if not isinstance(value, Mapping):
            raise UserError(f"strategy.{name}={shown(value)}; allowed: its fields, true, false or null")
        plugin = load_plugin("mechanisms", name, Mechanism)
        found[name] = build_plugin(plugin, value, f"mechanism {name!r}", f"strategy.{name}")
    return found


def mechanism_names() -> list[str]:
    """All mechanisms that are installed."""
    return [*builtin_files("mechanisms"), *entry_points("mechanisms")]


def _mechanisms(config: Mapping[str, Any], cls: type) -> list[str]:
    """The keys that name a mechanism: one that is installed, or a place."""
    own, installed = {"name", *field_names(cls)}, mechanism_names()
    return [key for key in config if key not in own and (key in installed or is_place(key))]
