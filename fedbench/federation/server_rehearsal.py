"""The server's part in a rehearsal: what mechanisms would do with its model, noted and not done."""

from collections.abc import Set
from dataclasses import dataclass
from typing import NamedTuple, cast

from fedbench.errors import UserError
from fedbench.federation.mechanism import Mechanism
from fedbench.federation.plan import StagePlan
from fedbench.federation.server_training import NO_IMAGES, ServerTraining
from fedbench.training.server_edit import Edit


class ServerWork(NamedTuple):
    """What a mechanism would do on the server: train for some epochs, or edit groups of tensors."""

    mechanism: str
    epochs: int = 0
    groups: frozenset[str] = frozenset()
    function: Edit | None = None


@dataclass
class RehearsedTraining:
    """Stands for a mechanism's `ServerTraining` and notes what it would do."""

    mechanism: str
    has_images: bool
    plan: StagePlan
    finished: tuple[int, ...]
    work: list[ServerWork]

    def train(self, epochs: int, base_lr: float | None = None) -> None:
        """See `ServerTraining.train`."""
        if not self.has_images:
            raise UserError(NO_IMAGES)
        if epochs:
            self.work.append(ServerWork(self.mechanism, epochs))

    def edit(self, groups: Set[str], function: Edit) -> None:
        """See `ServerTraining.edit`."""
        self.work.append(ServerWork(self.mechanism, groups=frozenset(groups), function=function))

    def __getattr__(self, name: str) -> object:
        raise UserError(
            f"{self.mechanism} reads the server's {name!r}; allowed where nothing is trained: plan, "
            "finished, train, edit"
        )


def rehearsed(
    mechanism: Mechanism, plan: StagePlan, finished: tuple[int, ...], work: list[ServerWork]
) -> ServerTraining:
    """What a mechanism's hooks are handed; what they would do is added to `work`."""
    name, has_images = type(mechanism).__name__, mechanism.auxiliary() is not None
    return cast(ServerTraining, RehearsedTraining(name, has_images, plan, finished, work))
