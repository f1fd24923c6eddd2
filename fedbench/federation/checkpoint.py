"""Where a run goes on after it was stopped: one file after every round, in safetensors, replaced in one step.

All randomness is keyed by (seed, round, client, purpose), and a worker's model comes from payloads, so the
server's values and versions are all there is to keep.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedbench.errors import UserError
from fedbench.federation.payload import StateDict
from fedbench.files import write_atomically

NAME, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """After a round.

    Attributes:
        cell_hash: of the run that wrote it.
        facts: plain values: rounds done, stage, versions, sizes of the run's other files.
        tensors: the server's state, and what clients hold.
    """

    cell_hash: str
    facts: Mapping[str, Any]
    tensors: StateDict

    def write(self, folder: Path) -> None:
        """Replace the last checkpoint; the one before it stays as `PREVIOUS`."""
        text = json.dumps({"cell_hash": self.cell_hash, **self.facts})
        current = folder / NAME
        if current.is_file():
            current.replace(folder / PREVIOUS)
        write_atomically(current, save(self.tensors, {"facts": text}))


def remove(folder: Path) -> None:
    """A finished run needs none."""
    for name in (NAME, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def read(folder: Path, cell_hash: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that can be read, and what is to be told about those that cannot.

    Raises:
        UserError: it belongs to another run.
    """
    complaints = []
    for name in (NAME, PREVIOUS):
        path = folder / name
        if not path.is_file():
            continue
        try:
            found = _load(path)
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            complaints.append(f"{path} cannot be read ({error}); the one before it is used, if there is one")
            continue
        if found.cell_hash != cell_hash:
            raise UserError(
                f"{path} belongs to another run (hash {found.cell_hash}, this one is {cell_hash}); "
                "allowed: to remove it, or another --out"
            )
        return found, complaints
    return None, complaints


def _load(path: Path) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return Checkpoint(facts.pop("cell_hash"), facts, tensors)
