"""Tensors that travel beside the model and are no weights: control variates, dictionaries, centroids.

Each mechanism declares its own by shape (`Mechanism.messages`). On the wire they are groups like any other: with a
version, in the ledger, in checkpoints and in `profile`; the server's values of them stand beside the model's.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fedbench.encoders.tensor_groups import Specs, StateDict, TensorSpec, group_of, groups_of, message_key
from fedbench.errors import UserError
from fedbench.federation.mechanism import Mechanism
from fedbench.federation.shipment import describe
from fedbench.federation.wire import Wire
from fedbench.training.local import LocalTask


def message_specs(senders: Iterable[object], specs: Specs, trained_groups: Iterable[str]) -> dict[str, TensorSpec]:
    """All messages, by key on the wire, where `trained_groups` of the model's tensors `specs` are under training.

    `senders`: strategies, which have none, are passed over.

    Raises:
        UserError: a message is named as a tensor that is not under training.
    """
    groups = frozenset(trained_groups)
    trained = {key: spec for key, spec in specs.items() if group_of(key) in groups and not spec.is_buffer}
    found: dict[str, TensorSpec] = {}
    for sender in (one for one in senders if isinstance(one, Mechanism)):
        for name, spec in sender.messages(trained).items():
            if "." in name and name not in trained:
                raise UserError(
                    f"{type(sender).__name__}.messages names {name!r}; allowed: names of tensors under training, "
                    "names without a dot"
                )
            found[message_key(type(sender).__name__, name)] = spec
    return found


def zeros(specs: Mapping[str, TensorSpec]) -> StateDict:
    """What the server sends before anybody has sent it anything."""
    return {key: torch.zeros(spec.shape, dtype=spec.dtype) for key, spec in specs.items()}


class MessageSum:
    """The sum of what clients send, in float64, taken while they return."""

    def __init__(self) -> None:
        self._sums: StateDict = {}

    def add(self, messages: Mapping[str, Tensor]) -> None:
        """Of one client."""
        for key, value in messages.items():
            self._sums[key] = self._sums[key] + value.double() if key in self._sums else value.double()

    def of(self, sender: str, like: Mapping[str, Tensor]) -> StateDict:
        """Those of a sender; `like`: what it has sent so far, by name."""
        keys = {name: message_key(sender, name) for name in like}
        return {
            name: self._sums[key].to(like[name].dtype) if key in self._sums else torch.zeros_like(like[name])
            for name, key in keys.items()
        }


def know_messages(task: LocalTask) -> LocalTask:
    """The task, which now knows what its mechanisms are sent and send beside the model.

    And the form of what both ends remember of a client, whichever it is, until a visit has its own.
    """
    specs = describe(task.method)
    task.message_specs = message_specs(task.terms, specs, task.trained_groups)
    wire, groups = Wire([term for term in task.terms if isinstance(term, Mechanism)]), groups_of(specs)
    own = ({key: spec for key, spec in specs.items() if group_of(key) == group} for group in groups)
    states = (wire.state(group, part, client=0) for group, part in zip(groups, own, strict=True))
    task.codec_state = {key: value for state in states for key, value in state.items()}
    return task
