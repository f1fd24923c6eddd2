"""Tensors that travel beside the model and are no weights: control variates, dictionaries, centroids.

Each mechanism declares its own by shape and direction (`Mechanism.messages`). On the wire they are groups like any
other: with a version, in the ledger, in checkpoints and in `profile`; the server's values of them stand beside the
model's. A tensor has one shape: where the two directions differ, they are different tensors.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from fedbench.config.schema import Config
from fedbench.encoders.tensor_groups import (
    Specs,
    StateDict,
    TensorSpec,
    group_of,
    groups_of,
    message_key,
    messages_of,
    on_wire,
    travelling,
)
from fedbench.errors import UserError
from fedbench.federation.mechanism import Mechanism
from fedbench.federation.shipment import describe
from fedbench.federation.wire import Wire
from fedbench.training.local import LocalTask


def message_specs(
    senders: Iterable[object], specs: Specs, trained_groups: Iterable[str], config: Config
) -> dict[str, TensorSpec]:
    """All messages, by key on the wire, where `trained_groups` of the model's tensors `specs` are under training.

    `senders`: strategies, which have none, are passed over.

    Raises:
        UserError: a message has a name or a direction that it cannot have.
    """
    groups = frozenset(trained_groups)
    trained = {key: spec for key, spec in specs.items() if group_of(key) in groups and not spec.is_buffer}
    found: dict[str, TensorSpec] = {}
    for sender in (one for one in senders if isinstance(one, Mechanism)):
        own = sender.messages(trained, config)
        for fault in _faults(own, trained):
            raise UserError(f"{type(sender).__name__}.messages names {fault}")
        found |= {message_key(type(sender).__name__, name): spec for name, spec in own.items()}
    return found


def _faults(own: Specs, trained: Specs) -> Iterator[str]:
    of_none = {name: spec for name, spec in own.items() if "." not in name}
    for name, spec in own.items():
        if "." in name and name not in trained:
            yield f"{name!r}; allowed: names of tensors under training, names without a dot"
        elif "." in name and spec.direction:
            yield f"{name!r}, {spec.direction} alone; allowed: of tensors under training, both ways (None)"
        elif spec.direction and not travelling(of_none, "upload" if spec.direction == "download" else "download"):
            yield f"{name!r}, {spec.direction} alone, and none the other way; allowed: some each way"


def zeros(specs: Mapping[str, TensorSpec]) -> StateDict:
    """What is sent by who has nothing else to send yet."""
    return {key: torch.zeros(spec.shape, dtype=spec.dtype) for key, spec in specs.items()}


class Arrived:
    """What a round's clients sent beside the model.

    What travels both ways is summed in float64 while they return, so that the server has no copy per client; what
    travels up alone is put together in the order of the clients' numbers, whatever the order of their return.
    """

    def __init__(self, specs: Specs) -> None:
        """`specs`: of all that travels."""
        self._specs = {key: spec for key, spec in specs.items() if on_wire(key)}
        self._sums: StateDict = {}
        self._apart: dict[int, StateDict] = {}  # by client

    def add(self, client: int, messages: Mapping[str, Tensor]) -> None:
        """Of one client."""
        self._apart[client] = {key: value for key, value in messages.items() if self._specs[key].direction}
        for key, value in messages.items():
            if key not in self._apart[client]:
                self._sums[key] = self._sums[key] + value.double() if key in self._sums else value.double()

    @property
    def clients(self) -> tuple[int, ...]:
        """That sent something, in ascending order."""
        return tuple(sorted(self._apart))

    def of(self, sender: str) -> StateDict:
        """Those of a mechanism, by name."""
        specs = messages_of(sender, travelling(self._specs, "upload"))
        return {name: self._value(message_key(sender, name), spec) for name, spec in specs.items()}

    def _value(self, key: str, spec: TensorSpec) -> Tensor:
        if spec.direction:
            return torch.stack([self._apart[client][key].to(spec.dtype) for client in self.clients])
        return self._sums[key].to(spec.dtype) if key in self._sums else torch.zeros(spec.shape, dtype=spec.dtype)


def know_messages(task: LocalTask, config: Config) -> LocalTask:
    """The task, which now knows what its mechanisms are sent and send beside the model.

    And the form of what both ends remember of a client, whichever it is, until a visit has its own.
    """
    specs = describe(task.method)
    task.message_specs = message_specs(task.terms, specs, task.trained_groups, config)
    wire, groups = Wire([term for term in task.terms if isinstance(term, Mechanism)]), groups_of(specs)
    own = ({key: spec for key, spec in specs.items() if group_of(key) == group} for group in groups)
    states = (wire.state(group, part, client=0) for group, part in zip(groups, own, strict=True))
    task.codec_state = {key: value for state in states for key, value in state.items()}
    return task
