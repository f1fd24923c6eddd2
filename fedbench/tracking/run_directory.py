"""One cell's results as files: manifest.json, rounds.jsonl, ledger.csv.gz, encoder.safetensors, summary.json.

`summary.json` is written last and atomically, so that its existence means the run is finished. A number that
is not finite (the loss of a diverged run) is written as null: JSON has no word for it.
"""

import csv
import gzip
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbench.errors import UserError
from fedbench.files import append, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST, ROUNDS, ENCODER, SUMMARY = "manifest.json", "rounds.jsonl", "encoder.safetensors", "summary.json"
LEDGER = "ledger.csv.gz"
EVALUATIONS = "evaluation-*.json"  # what `evaluate` adds to a finished run
ERROR = "error.txt"
WANDB_ADDRESS = "wandb/address.txt"  # of the W&B run of an online one; it names the user, as all in wandb/ does
PARTS = ".*.part"  # left behind by a kill while a file was written


class RunDirectory:
    """The folder `<out>/<cell name>`; nothing is written before `start`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, manifest: Mapping[str, Any]) -> None:
        """Create the folder, remove what an earlier attempt left, write the manifest.

        The old summary goes first: were we killed here, the folder would count as unfinished.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for name in (SUMMARY, ENCODER, ROUNDS, LEDGER, ERROR):
            (self.path / name).unlink(missing_ok=True)
        for path in (*self.evaluations(), *self.path.glob(PARTS)):
            path.unlink()
        self.describe(manifest)

    def describe(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest."""
        write_json(self.path / MANIFEST, manifest)

    def is_described(self) -> bool:
        """Whether there is a manifest that can be read."""
        try:
            return "cell_hash" in self.manifest()
        except (OSError, ValueError):
            return False

    def append_round(self, record: Mapping[str, Any]) -> None:
        """Add one line to `rounds.jsonl`; it has left this process when the call returns."""
        append(self.path / ROUNDS, (to_json(record) + "\n").encode())

    def append_ledger(self, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
        """Add a round's lines to the byte ledger: one gzip member per round, which readers take for one file."""
        path = self.path / LEDGER
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not path.exists():
            writer.writerow(columns)
        writer.writerows(rows)
        append(path, gzip.compress(text.getvalue().encode(), mtime=0))

    def ledger(self) -> list[dict[str, str]]:
        """The lines of the byte ledger so far."""
        with gzip.open(self.path / LEDGER, "rt", encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def sizes(self) -> dict[str, int]:
        """Of the files that grow with every round."""
        return {name: (self.path / name).stat().st_size for name in (ROUNDS, LEDGER)}

    def rewind(self, sizes: Mapping[str, int]) -> bool:
        """Cut the files that grow back to `sizes`; False if one of them is shorter than that."""
        paths = {self.path / name: size for name, size in sizes.items()}
        if any(not path.is_file() or path.stat().st_size < size for path, size in paths.items()):
            return False
        for path, size in paths.items():
            os.truncate(path, size)
        for path in (self.path / ERROR, *self.path.glob(PARTS)):
            path.unlink(missing_ok=True)
        return True

    def finish(self, summary: Mapping[str, Any], encoder_state: Mapping[str, "Tensor"]) -> None:
        """Write the encoder, then the summary that marks the run as finished."""
        from safetensors.torch import save

        tensors = {name: tensor.detach().contiguous() for name, tensor in encoder_state.items()}
        write_atomically(self.path / ENCODER, save(tensors, metadata=None))
        write_json(self.path / SUMMARY, summary)

    def fail(self, text: str) -> None:
        """Leave word of why the run stopped; gone when it goes on."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / ERROR, text.encode())

    def is_finished(self, cell_hash: str) -> bool:
        """Whether this folder holds the finished run of the cell with that hash.

        Raises:
            UserError: it holds a finished run of which one cannot tell whose it is, or how it ended.
        """
        if not (self.path / SUMMARY).is_file():
            return False
        contents = {}
        for name in (MANIFEST, SUMMARY):
            try:
                contents[name] = read_json(self.path / name)
            except (OSError, ValueError):
                state = "damaged" if (self.path / name).is_file() else "missing from a finished run"
                raise UserError(f"{self.path / name} is {state}; remove {self.path} to run it again") from None
        return bool(contents[MANIFEST].get("cell_hash") == cell_hash)

    def manifest(self) -> dict[str, Any]:
        """What was run, by which code, on what machine."""
        return read_json(self.path / MANIFEST)

    def evaluations(self) -> list[Path]:
        """The files that `evaluate` added, by name."""
        return sorted(self.path.glob(EVALUATIONS))

    def rounds(self) -> list[dict[str, Any]]:
        """The records so far, one per round; of a line that is just being written there is none yet."""
        if not (self.path / ROUNDS).is_file():
            return []
        *lines, _ = (self.path / ROUNDS).read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines]

    def summary(self) -> dict[str, Any]:
        """The figures of the finished run."""
        return read_json(self.path / SUMMARY)


def to_json(value: object, indent: int | None = None) -> str:
    """JSON text with null for every number that is not finite."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: object) -> None:
    """`value` as indented JSON, written atomically."""
    write_atomically(path, (to_json(value, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A file whose top level is a mapping."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
