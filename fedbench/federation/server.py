"""The server: the global model's tensors, and what leaves it as payload."""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from fedbench.encoders.tensor_groups import StateDict, group_of, select
from fedbench.errors import UserError
from fedbench.federation.aggregation import Memory
from fedbench.federation.diagnostics import flatten
from fedbench.federation.dispatch import Dispatch
from fedbench.federation.payload import decode, encode
from fedbench.federation.plan import StagePlan
from fedbench.federation.shipment import Specs

STATE, HELD, MEMORY = "state/", "held/", "memory/"  # kinds of tensors in a checkpoint


class RejectedError(Exception):
    """An upload that cannot be used, and why."""


class Server:
    """Holds one copy of the model's online state, on the CPU, and no copy per client."""

    def __init__(self, dispatch: Dispatch) -> None:
        self.state: StateDict = {}
        self.memory: Memory = {}  # what plugins keep
        self.dispatch = dispatch
        self._encoded: dict[tuple[tuple[str, int], ...], bytes] = {}

    def start_stage(
        self, plan: StagePlan, specs: Specs, initial: Mapping[str, Tensor], anew: Set[str] = frozenset()
    ) -> None:
        """Take over the model of a new stage: groups keep their values, new ones and those `anew` get `initial`'s.

        A group whose shape changed (the reshaping layer of a longer ResNet) is a new one.
        """
        new, old = self.dispatch.start_stage(plan, specs, anew), self.state
        self.state = {
            key: (value if group_of(key) in new else old[key]).detach().clone() for key, value in initial.items()
        }

    def accept(self, data: bytes) -> StateDict:
        """An upload, decoded.

        Raises:
            RejectedError: it does not decode, does not fit the model, or is not finite.
        """
        try:
            state = decode(data)
        except UserError as error:
            raise RejectedError(f"does not decode: {error}") from error
        for key, value in state.items():
            if key not in self.state or self.state[key].shape != value.shape:
                raise RejectedError(f"{key} is not a tensor of the model")
        if not flatten(state).sum().isfinite():  # else all are: one by one takes longer than to decode them
            for key, value in state.items():
                if not value.isfinite().all():
                    raise RejectedError(f"{key} is not finite")
        return state

    def apply(self, values: Mapping[str, Tensor], aggregated: bool) -> None:
        """Take over new values; the version of a group rises if one of its values changed.

        Args:
            values: by key of the model's online state.
            aggregated: whether they are the clients' aggregate, or the server's own doing.
        """
        changed = {group_of(key) for key, value in values.items() if not torch.equal(self.state[key], value)}
        self.state.update({key: value.detach().to("cpu", copy=True) for key, value in values.items()})
        self.dispatch.changed(changed, aggregated)

    def encode(self, groups: Sequence[str]) -> bytes:
        """Groups in their current versions; encoded once for all who lack the same ones."""
        versions = self.dispatch.versions.current
        key = tuple((group, versions[group]) for group in groups)
        if key not in self._encoded:
            current = versions.items()
            self._encoded = {old: data for old, data in self._encoded.items() if set(old) <= set(current)}
            self._encoded[key] = encode(select(self.state, groups))
        return self._encoded[key]

    def snapshot(self) -> tuple[dict[str, object], StateDict]:
        """For a checkpoint: plain values, and tensors by kind and name."""
        versions = self.dispatch.versions
        held = {f"{HELD}{group}": torch.from_numpy(numbers) for group, numbers in versions.held().items()}
        values = {f"{STATE}{key}": value.contiguous() for key, value in self.state.items()}
        memory = {
            f"{MEMORY}{plugin}/{name}": value.contiguous()
            for plugin, tensors in self.memory.items()
            for name, value in tensors.items()
        }
        return {"versions": versions.facts()}, {**values, **held, **memory}

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from a snapshot, in a stage that the dispatch knows."""
        held = {key.removeprefix(HELD): v.numpy() for key, v in tensors.items() if key.startswith(HELD)}
        self.dispatch.versions.restore(facts["versions"], held)
        self.state = {key.removeprefix(STATE): v for key, v in tensors.items() if key.startswith(STATE)}
        for key, value in tensors.items():
            if key.startswith(MEMORY):
                plugin, name = key.removeprefix(MEMORY).split("/", 1)
                self.memory.setdefault(plugin, {})[name] = value
