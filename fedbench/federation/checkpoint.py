"""Where a run goes on after it was stopped: one file after every round, in safetensors, replaced in one step.

All randomness is keyed by (seed, round, client, purpose), and a worker's model comes from payloads, so the
server's values and versions are all there is to keep.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedbench.encoders.tensor_groups import StateDict
from fedbench.errors import UserError
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
        write_atomically(current, save(self.tensors, {"facts": text, "sha256": _digest(text, self.tensors)}))


def remove(folder: Path) -> None:
    """A finished run needs none."""
    for name in (NAME, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def read(
    folder: Path, cell_hash: str, rewind: Callable[[Mapping[str, int]], bool]
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that can be gone on from, and what is to be told about those that cannot.

    Args:
        rewind: brings the run's other files to the sizes of a checkpoint; false if they are too short for it.

    Raises:
        UserError: it belongs to another run.
    """
    complaints, instead = [], "the one before it is used, if there is one"
    for name in (NAME, PREVIOUS):
        path = folder / name
        if not path.is_file():
            continue
        try:
            found = _load(path)
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            complaints.append(f"{path} cannot be read ({error}); {instead}")
            continue
        if found.cell_hash != cell_hash:
            raise UserError(
                f"{path} belongs to another run (hash {found.cell_hash}, this one is {cell_hash}); "
                "allowed: to remove it, or another --out"
            )
        if rewind(found.facts["sizes"]):
            return found, complaints
        complaints.append(f"rounds of {path} are missing from the run's files; {instead}")
    return None, complaints


def _load(path: Path) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        text, digest = (file.metadata()[key] for key in ("facts", "sha256"))
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if _digest(text, tensors) != digest:
        raise ValueError("its values are not those that were written")
    facts = json.loads(text)
    return Checkpoint(facts.pop("cell_hash"), facts, tensors)


def _digest(facts: str, tensors: StateDict) -> str:
    """SHA-256 of all that a checkpoint holds: safetensors notices damage to its header alone."""
    digest = sha256(facts.encode())
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
