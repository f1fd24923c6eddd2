"""Where a run goes on after it was stopped: one file after every round, in safetensors, replaced in one step.

All randomness is keyed by (seed, round, client, purpose), and a worker's model comes from payloads, so the
server's values and versions are all there is to keep.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedbench.encoders.tensor_groups import StateDict
from fedbench.errors import UserError
from fedbench.files import CHECKPOINTS, write_atomically
from fedbench.tensor_file import DamagedError, EarlierError, pack, tensor_digest, unpack

NAME, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """After a round.

    Attributes:
        cell_hash: of the run that wrote it.
        facts: plain values: rounds done, stage, versions, marks of the run's other files.
        tensors: the server's state, and what clients hold.
    """

    cell_hash: str
    facts: Mapping[str, Any]
    tensors: StateDict

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the tensors: two runs in which it is equal go on with equal bits."""
        return tensor_digest(self.tensors)

    def write(self, folder: Path, **facts: object) -> None:
        """Replace the last checkpoint; the one before it stays as `PREVIOUS`.

        `facts`: plain values besides its own.
        """
        content = pack({"cell_hash": self.cell_hash, **self.facts, **facts}, self.tensors, self.digest)
        replace(folder, content)

    def keep(self, folder: Path) -> None:
        """Leave the one that was written last for good: a second name of the same file."""
        path = folder / CHECKPOINTS.replace("*", f"{self.facts['rounds_done']:06d}")
        path.unlink(missing_ok=True)
        path.hardlink_to(folder / NAME)


def replace(folder: Path, content: bytes) -> None:
    """Let `content` be the newest checkpoint; the one before it stays."""
    current = folder / NAME
    if current.is_file():
        current.replace(folder / PREVIOUS)
    write_atomically(current, content)


def remove(folder: Path) -> None:
    """A finished run needs none."""
    for name in (NAME, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def kept(folder: Path, cell_hash: str) -> list[Checkpoint]:
    """All that there are and that can be read, the newest one first."""
    found = []
    for path in [*folder.glob(CHECKPOINTS), folder / NAME, folder / PREVIOUS]:
        try:
            found.append(load(path))
        except (DamagedError, OSError):
            continue
    mine = {one.facts["rounds_done"]: one for one in found if one.cell_hash == cell_hash}
    return [mine[done] for done in sorted(mine, reverse=True)]


def newest(folder: Path) -> Checkpoint | None:
    """The one that was written last. DamagedError: it is not what was written; OSError: it cannot be read."""
    return load(folder / NAME) if (folder / NAME).is_file() else None


def read(
    folder: Path, cell_hash: str, rewind: Callable[[Mapping[str, Any]], str]
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that can be gone on from, and what is to be told about those that cannot.

    Args:
        rewind: brings the run's other files to the facts of a checkpoint; says why where it cannot.

    Raises:
        UserError: it belongs to another run.
    """
    complaints, instead = [], "the one before it is used, if there is one"
    for path in (folder / NAME, folder / PREVIOUS, *sorted(folder.glob(CHECKPOINTS), reverse=True)):
        if not path.is_file():
            continue
        try:
            found = load(path)
        except EarlierError as error:  # what was computed is not thrown away for it
            raise UserError(
                f"{error}; allowed: to finish the run with that version, to remove {folder}, or another --out"
            ) from None
        except (DamagedError, OSError) as error:
            complaints.append(f"{error}; {instead}")
            continue
        if found.cell_hash != cell_hash:
            raise UserError(
                f"{path} belongs to another run (hash {found.cell_hash}, this one is {cell_hash}); "
                "allowed: to remove it, or another --out"
            )
        why = rewind(found.facts)
        if not why:
            return found, complaints
        complaints.append(f"{path} cannot be gone on from ({why}); {instead}")
    return None, complaints


def load(path: Path) -> Checkpoint:
    """DamagedError: it is not what was written; OSError: it cannot be read."""
    facts, tensors = unpack(path)
    try:
        cell_hash, _, _ = facts.pop("cell_hash"), facts["rounds_done"], facts["stage"]
    except KeyError as error:
        raise DamagedError(f"{path} cannot be read (it has no {error})") from error
    return Checkpoint(cell_hash, facts, tensors)
