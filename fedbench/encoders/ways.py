"""Ways through an encoder's layers, where a transform gives them several, and what layers note as they run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from fedbench.errors import UserError


class Ways:
    """What the layers of an encoder share besides tensors; a transform that makes more than one way subclasses it.

    Attributes:
        names: of the ways there are; the first is taken where nobody chooses.
        taken: the one that layers take now.
        alone: the only one that is taken, whoever chooses; "": any.
    """

    def __init__(self, *names: str) -> None:
        self.names = names or ("",)
        self.taken = self.names[0]
        self.alone = ""
        self._noted: list[Tensor] | None = None

    def keep_to(self, name: str) -> None:
        """From now on go that way alone; "": as is chosen.

        UserError: there is no such way.
        """
        if name not in ("", *self.names):
            raise UserError(f"a plan with way={name!r}; allowed: a way of the encoder, {' or '.join(self.names)}")
        self.alone, self.taken = name, name or self.names[0]

    def is_apart(self, key: str, way: str) -> bool:
        """Whether who keeps to a way never comes to a key's tensor: its layer is called by the name of another."""
        return bool(way) and not {*self.names}.difference({way}).isdisjoint(key.split("."))

    @contextmanager
    def take(self, name: str) -> Iterator[None]:
        """Go that way meanwhile."""
        assert name in self.names
        before, self.taken = self.taken, self.alone or name
        try:
            yield
        finally:
            self.taken = before

    @contextmanager
    def noting(self) -> Iterator[list[Tensor]]:
        """What layers note meanwhile, in the order in which they run."""
        noted: list[Tensor] = []
        self._noted = noted
        try:
            yield noted
        finally:
            self._noted = None

    def note(self, value: Tensor) -> None:
        """By a layer, as it runs; forgotten where nobody asks."""
        if self._noted is not None:
            self._noted.append(value)

    def losses(self, noted: Sequence[Tensor]) -> list[Tensor]:
        """Terms that the layers add to the loss of a step, from what they noted in it."""
        return []

    def figures(self, noted: Sequence[Tensor]) -> dict[str, float]:
        """What a table is to say of an encoder, from what its layers noted as it was evaluated."""
        return {}
