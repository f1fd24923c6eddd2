"""What a codec is: another form of a tensor group's parameters on the wire, smaller and mostly lossy. A whole one:

    @dataclass(frozen=True)
    class Halves(Codec):
        def wire(self, specs: Specs, way: Way) -> Specs:
            return {key: spec._replace(dtype=torch.float16) for key, spec in specs.items()}

        def pack(self, values: StateDict, way: Way, draw: torch.Generator) -> StateDict:
            return {key: value.half() for key, value in values.items()}

        def unpack(self, packed: StateDict, specs: Specs, way: Way) -> StateDict:
            return {key: value.float() for key, value in packed.items()}

It is a mechanism, switched on under its name in the strategy's section: `strategy: {name: fedssl, halves: {}}`.
Several form a chain. What is packed is a change of what both ends hold already.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from fedbench.federation.mechanism import Mechanism

if TYPE_CHECKING:
    import torch

    from fedbench.encoders.tensor_groups import Specs, StateDict

Direction = Literal["download", "upload"]
DIRECTIONS: tuple[Direction, ...] = ("download", "upload")


@dataclass(frozen=True)
class Way:
    """Where a payload goes.

    Attributes:
        tier: of the client at its other end; the client, where payloads are each client's own.
        state: what both ends remember of it, by tensor (`PersonalCodec`). It is there where values are packed and
            unpacked; forms do not depend on it, so that it is no part of a way's identity.
    """

    direction: Direction
    tier: int = 0
    state: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Codec(Mechanism, ABC):
    """A form of one tensor group at a time: of its parameters in floating point; the rest travels as it is.

    An upload is what local training changed in what the client had received. A download is what the server's
    values differ in from what the clients hold of the version before; whoever does not hold that is sent whole
    what the others have by then. So the server knows what each client holds, and what one download loses is in
    the next one.
    """

    order: ClassVar[int] = 0
    """In a chain, codecs work in rising order: first what chooses entries, then (1) what shortens numbers."""

    download_of: Literal["change", "values"] = "change"
    """What is packed on the way down; values: the server's own, for everybody, whatever a client holds."""
    error_feedback: bool = False
    """Whether a client adds what its upload lost to its next one; it keeps that on its disk."""

    def works(self, way: Way) -> bool:
        """Whether there is anything to pack on this way; if not, payloads are what they are without it."""
        return True

    def covers(self, group: str) -> bool:
        """Whether a tensor group is packed: all, unless a codec is for some."""
        return True

    @property
    def num_tiers(self) -> int:
        """Of clients whose payloads have forms of their own (`Way.tier`); client n is in tier n modulo so many."""
        return 1

    @abstractmethod
    def wire(self, specs: Specs, way: Way) -> Specs:
        """The tensors that travel instead of those of `specs`: from shapes and types alone, never from values.

        In a chain `specs` are what the codec before makes, but for its integers, which travel as they are.
        """

    @abstractmethod
    def pack(self, values: StateDict, way: Way, draw: torch.Generator) -> StateDict:
        """Values in the form that `wire` declares, on the CPU. `draw`: the only source of chance."""

    @abstractmethod
    def unpack(self, packed: StateDict, specs: Specs, way: Way) -> StateDict:
        """Values for all of `specs` from their form on the wire and nothing else."""


@dataclass(frozen=True)
class PersonalCodec(Codec, ABC):
    """A codec whose payloads are each client's own: a state that both ends remember of it decides what is packed.

    It is kept by tensor, and is in `way.state` where a group is packed and unpacked. Both ends know what it is
    before a client's first upload; where it changes, an upload carries what it becomes, which holds as soon as the
    server takes the upload: one that is lost changes it at neither end. No other client's state is at hand where a
    client's payload is unpacked, and nothing that a client was sent is held beyond its visit, by it or for it:
    what it needs, it is sent in every visit.

    A visit finds the state of what it trains in `visit.codec_state`, and changes it by `visit.change_codec_state`.
    `works` may not depend on the way.
    """

    download_of: Literal["values"] = "values"
    """There is no version of a group that the server could know a client to hold."""
    error_feedback: Literal[False] = False
    """What is lost in one state would be sent in another."""

    @property
    def changes_state(self) -> bool:
        """Whether uploads carry the state, all tensors of it for each group that they carry."""
        return True

    @abstractmethod
    def first_state(self, specs: Specs, draw: torch.Generator) -> StateDict:
        """A client's state of a group before its first upload, for some of `specs` by their keys.

        Shapes and types of the state must follow from `specs` alone. `draw`: of this client and group.
        """

    def check_state(self, state: StateDict, specs: Specs) -> None:
        """Refuse a state that a client sent, by a `ValueError`; shapes and types are those of the first one."""

    def holds(self, state: StateDict, specs: Specs) -> StateDict:
        """Where a client has entries of its own, bool in the tensor's shape; tensors left out: everywhere.

        Of the others the server takes its own values for the client's, and the mean is without them.
        """
        return {}
