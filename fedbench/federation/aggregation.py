"""From clients' updates to the server's new values: a strategy aggregates, mechanisms stand before and behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor

from fedbench.encoders.tensor_groups import StateDict, message_key, messages_of
from fedbench.errors import UserError
from fedbench.federation.plan import StagePlan

if TYPE_CHECKING:
    from fedbench.federation.mechanism import Mechanism
    from fedbench.federation.messages import Arrived
    from fedbench.federation.strategy import ClientUpdate, Strategy

Memory = dict[str, StateDict]  # plugin -> tensors that it keeps from round to round, by names of its own


@dataclass(frozen=True)
class ServerState:
    """What the server has when updates come in.

    Attributes:
        values: its tensors, by key of the model's online state; not to be changed.
        parameters: keys of those that are parameters; the rest are buffers (BatchNorm's statistics and counter).
        messages: what the plugin's clients were sent beside the model, by name; in `after_messages`.
        clients: whose messages arrived in this round, in ascending order; in `after_messages`.
        num_clients: registered ones.
        plan: the stage's, which is the `stage`-th (1-based).
        round_index: 0-based over the whole run.
        num_drawn: clients that were drawn for this round, lost ones included.
        memory: the plugin's own tensors from one round to the next, by names of its choice: they are in the
            checkpoint, on the CPU, and survive stages.
        seed: of the run; what is drawn is drawn from `generator(seed, own name, round_index, ...)`.
    """

    values: Mapping[str, Tensor]
    parameters: frozenset[str]
    plan: StagePlan
    stage: int
    round_index: int
    num_drawn: int
    memory: StateDict = field(default_factory=dict)
    messages: Mapping[str, Tensor] = field(default_factory=dict)
    clients: tuple[int, ...] = ()
    num_clients: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Aggregation:
    """What a strategy and its mechanisms make of a round's updates."""

    strategy: Strategy
    mechanisms: Sequence[Mechanism]
    memory: Memory

    def __call__(self, updates: Iterator[ClientUpdate], server: ServerState) -> StateDict:
        """The server's new values; empty if nothing was aggregated. `server`: as it is, but for its memory.

        Raises:
            UserError: the strategy returned what does not fit the model, or a mechanism other entries than those
                that were aggregated.
        """
        states = [(mechanism, self._with_memory(server, mechanism)) for mechanism in self.mechanisms]
        aggregate = self.strategy.aggregate(_received(updates, states), self._with_memory(server, self.strategy))
        check_fit(f"{type(self.strategy).__name__}.aggregate", aggregate, server.values)
        for mechanism, state in states if aggregate else ():
            hook = f"{type(mechanism).__name__}.after_aggregate"
            result = mechanism.after_aggregate(aggregate, state)
            if result.keys() != aggregate.keys():
                odd = min(result.keys() ^ aggregate.keys())
                raise UserError(f"{hook} adds or leaves out {odd!r}; allowed: the same entries")
            check_fit(hook, result, server.values)
            aggregate = result
        return aggregate

    def messages(self, arrived: Arrived, sent: Mapping[str, Tensor], server: ServerState) -> StateDict:
        """What the server sends from now on beside the model, by key on the wire, as `sent` so far.

        Raises:
            UserError: a mechanism returned others than it declared.
        """
        new: StateDict = {}
        for mechanism in self.mechanisms:
            name = type(mechanism).__name__
            own = messages_of(name, sent)
            if own:
                state = replace(self._with_memory(server, mechanism), messages=own, clients=arrived.clients)
                said = mechanism.after_messages(arrived.of(name), state)
                check_fit(f"{name}.after_messages", said, own)
                new |= {message_key(name, key): value for key, value in said.items()}
        return new

    def ends_stage(self, server: ServerState) -> bool:
        """Whether a mechanism ends the stage after this round; each is asked, so that all remember it."""
        wishes = [mechanism.ends_stage(self._with_memory(server, mechanism)) for mechanism in self.mechanisms]
        return any(wishes)

    def _with_memory(self, server: ServerState, plugin: Strategy | Mechanism) -> ServerState:
        return replace(server, memory=self.memory.setdefault(type(plugin).__name__, {}))


def _received(
    updates: Iterator[ClientUpdate], states: Sequence[tuple[Mechanism, ServerState]]
) -> Iterator[ClientUpdate]:
    for update in updates:
        for mechanism, server in states:
            update = mechanism.receive(update, server)
        yield update


def check_fit(hook: str, values: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Refuse what a plugin's `hook` returned if it does not fit the model's `state`, by a `UserError`."""
    for key, value in values.items():
        own = state.get(key)
        if own is None or own.shape != value.shape or own.dtype != value.dtype:
            has = "no such tensor" if own is None else f"{tuple(own.shape)}, {own.dtype}"
            raise UserError(
                f"{hook} returned {key!r} of shape {tuple(value.shape)}, {value.dtype}; the model has {has}"
            )
