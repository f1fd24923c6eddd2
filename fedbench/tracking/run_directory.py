"""One cell's results as files.

manifest.json; of the rounds rounds.jsonl, clients.arrow and ledger.csv.gz; encoder.safetensors and summary.json.
`summary.json` is written last and atomically, so that its existence means the run is finished. A number that
is not finite (the loss of a diverged run) is written as null: JSON has no word for it.
"""

import csv
import gzip
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbench.errors import UserError
from fedbench.files import CHECKPOINTS, append, write_atomically
from fedbench.tracking.noted import FORMAT

if TYPE_CHECKING:
    from pyarrow import Table
    from torch import Tensor

MANIFEST, ROUNDS, ENCODER, SUMMARY = "manifest.json", "rounds.jsonl", "encoder.safetensors", "summary.json"
CLIENT_ROWS, LEDGER = "clients.arrow", "ledger.csv.gz"
EVALUATIONS = "evaluation-*.json"  # what `evaluate` adds to a finished run
ERROR = "error.txt"
WANDB_ADDRESS = "wandb/address.txt"  # of the W&B run of an online one; it names the user, as all in wandb/ does
PARTS = ".*.part"  # left behind by a kill while a file was written
CLIENTS = "clients"  # folder of what clients keep
GROWING = (ROUNDS, CLIENT_ROWS, LEDGER)
VOUCHED = 2  # format since which summaries vouch
FILES, SEAL = "files", "sha256"  # keys of what a summary vouches for: other files, and itself
EMPTY = sha256().hexdigest()  # of a file to which nothing was added
CHUNK = 1 << 24  # bytes of a file read at a time


class RunDirectory:
    """The folder `<out>/<cell name>`; nothing is written before `start`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digests: dict[str, Any] = {}  # of the files that grow, as far as they are written

    def start(self, manifest: Mapping[str, Any]) -> None:
        """Create the folder, remove what an earlier attempt left, write the manifest.

        The old summary goes first: were we killed here, the folder would count as unfinished.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for name in (SUMMARY, ENCODER, *GROWING, ERROR):
            (self.path / name).unlink(missing_ok=True)
        for path in (*self.evaluations(), *self.path.glob(CHECKPOINTS), *self._parts()):
            path.unlink()
        self._digests = {name: sha256() for name in GROWING}
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
        self._append(ROUNDS, (to_json(record) + "\n").encode())

    def append_clients(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Add a row for each of a round's clients to `clients.arrow`; before its line in `rounds.jsonl`."""
        from fedbench.tracking import client_rows  # here: pyarrow takes a tenth of a second

        head = b"" if (self.path / CLIENT_ROWS).exists() else client_rows.head()
        self._append(CLIENT_ROWS, head + client_rows.batch(columns))

    def append_ledger(self, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
        """Add a round's lines to the byte ledger: one gzip member per round, which readers take for one file."""
        path = self.path / LEDGER
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not path.exists():
            writer.writerow(columns)
        writer.writerows(rows)
        self._append(LEDGER, gzip.compress(text.getvalue().encode(), mtime=0))

    def _append(self, name: str, content: bytes) -> None:
        path = self.path / name
        if name not in self._digests:
            self._digests[name] = _digest_of(path) if path.is_file() else sha256()
        append(path, content)
        self._digests[name].update(content)

    def ledger(self) -> list[dict[str, str]]:
        """The lines of the byte ledger so far."""
        with gzip.open(self.path / LEDGER, "rt", encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def marks(self) -> dict[str, list[Any]]:
        """Of the files that grow with every round: name -> size and SHA-256."""
        return {name: [(self.path / name).stat().st_size, self._digests[name].hexdigest()] for name in GROWING}

    def rewind(self, marks: Mapping[str, Sequence[Any]]) -> str:
        """Cut the files that grow back to `marks`; says why where one is too short for that or is another."""
        found, why = self._as_far_as(marks)
        if why:
            return why
        self._digests = found
        for name, (size, _) in marks.items():
            os.truncate(self.path / name, size)
        for path in (self.path / ERROR, *self._parts()):
            path.unlink(missing_ok=True)
        return ""

    def unlike(self, marks: Mapping[str, Sequence[Any]]) -> str:
        """Why a checkpoint with these `marks` cannot go on from the files that grow; "" if it can."""
        return self._as_far_as(marks)[1]

    def _as_far_as(self, marks: Mapping[str, Sequence[Any]]) -> tuple[dict[str, Any], str]:
        """Digests of the files that grow, up to `marks`; or why one is too short for that or is another."""
        found = {}
        if missing := [name for name in GROWING if name not in marks]:
            return {}, f"an earlier version, which wrote no {missing[0]}, began it"
        for name, (size, digest) in marks.items():
            path = self.path / name
            if path.is_symlink():  # cutting it would cut a file elsewhere
                return {}, f"{name} is a link"
            if not path.is_file() or path.stat().st_size < size:
                return {}, f"rounds are missing from {name}"
            found[name] = _digest_of(path, size)
            if found[name].hexdigest() != digest:
                return {}, f"{name} is not what was written"
        return found, ""

    def _parts(self) -> Iterator[Path]:
        """What a kill left behind."""
        yield from self.path.glob(PARTS)
        yield from (self.path / CLIENTS).rglob(PARTS)

    def finish(self, summary: Mapping[str, Any], encoder_state: Mapping[str, "Tensor"]) -> None:
        """Write the encoder, then the summary that marks the run as finished, and vouches for the other files.

        UserError: one of them is not what was written.
        """
        from safetensors.torch import save

        tensors = {name: tensor.detach().contiguous() for name, tensor in encoder_state.items()}
        write_atomically(self.path / ENCODER, save(tensors, metadata=None))
        names = [name for name in (MANIFEST, *GROWING, ENCODER) if (self.path / name).is_file()]
        files = {name: _digest_of(self.path / name).hexdigest() for name in names}
        for name, digest in self._digests.items():
            if files.get(name, EMPTY) != digest.hexdigest():
                raise UserError(
                    f"{self.path / name} changed while the run went on; nothing vouches for its figures"
                )
        write_json(self.path / SUMMARY, sealed({**summary, FILES: files}))

    def damage(self, *names: str) -> list[str]:
        """What is wrong with the files of a finished run, or with those called `names`, in words.

        Of a run from before runs vouched for their files nothing is known, and nothing is said.

        Raises:
            OSError, ValueError: the summary cannot be read.
        """
        summary = self.summary()
        if not {FILES, SEAL} <= summary.keys() and self._vouches():
            return [f"{SUMMARY} does not vouch for the files of the run, as it did when it was written"]
        wrong = [SUMMARY] if not is_whole(summary) else []
        for name, digest in summary.get(FILES, {}).items():
            if names and name not in names:
                continue
            path = self.path / name
            if not path.is_file() or _digest_of(path).hexdigest() != digest:
                wrong.append(name)
        wrong += [path.name for path in self.evaluations() if not is_whole(read_json(path))]
        return [
            f"{name} is {'missing' if not (self.path / name).is_file() else 'not what was written'}"
            for name in wrong
        ]

    def _vouches(self) -> bool:
        """Whether the run is of a format in which summaries vouch for the other files."""
        try:
            number = self.manifest().get("format", 1)
        except (OSError, ValueError):
            return False
        return isinstance(number, int) and VOUCHED <= number <= FORMAT  # of a later one nothing is known

    def encoder_digest(self) -> str:
        """SHA-256 of the trained weights' file, as hex.

        Raises:
            UserError: it is not what the run wrote.
        """
        self._refuse_damage(ENCODER)
        return str(_digest_of(self.path / ENCODER).hexdigest())

    def _refuse_damage(self, *names: str) -> None:
        """UserError where a file of a finished run is not what it wrote."""
        try:
            wrong = self.damage(*names)
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{self.path / SUMMARY} is not that of a run: {error}") from None
        if wrong:
            raise UserError(f"{self.path}: {'; '.join(wrong)}; `verify` checks every file")

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
        if contents[MANIFEST].get("cell_hash") != cell_hash:
            return False
        if wrong := self.damage():
            raise UserError(f"{self.path}: {'; '.join(wrong)}; remove it to run it again")
        return True

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

    def clients(self) -> "Table":
        """A row for each client of each round so far; its columns are those of `RoundRecord.clients`.

        Of a round whose line is not written yet there is none.

        Raises:
            UserError: the file is damaged, or is not there.
        """
        from fedbench.tracking import client_rows

        if (self.path / SUMMARY).is_file():
            self._refuse_damage(ROUNDS, CLIENT_ROWS)
        rounds, rows = self.path / ROUNDS, self.path / CLIENT_ROWS
        done = rounds.read_bytes().count(b"\n") if rounds.is_file() else 0
        if done and not rows.is_file():
            raise UserError(f"{rows} is missing: it was removed, or the run is of an earlier version")
        try:
            return client_rows.read(rows.read_bytes() if done else client_rows.head(), done)
        except ValueError as error:
            raise UserError(f"{rows} cannot be read: {error}") from None

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


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` and its own SHA-256, see `is_whole`."""
    return {**content, SEAL: _seal(content)}


def is_whole(content: Mapping[str, Any]) -> bool:
    """Whether a sealed file holds what was written; what has no seal is from before there were any."""
    return SEAL not in content or content[SEAL] == _seal(content)


def _seal(content: Mapping[str, Any]) -> str:
    values = json.loads(to_json({key: value for key, value in content.items() if key != SEAL}))
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _digest_of(path: Path, size: int | None = None) -> Any:
    """SHA-256 of a file, or of its first bytes; more can be added to it."""
    digest, left = sha256(), path.stat().st_size if size is None else size
    with path.open("rb") as file:
        while left > 0 and (chunk := file.read(min(left, CHUNK))):
            digest.update(chunk)
            left -= len(chunk)
    return digest


def write_json(path: Path, value: object) -> None:
    """`value` as indented JSON, written atomically."""
    write_atomically(path, (to_json(value, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A file whose top level is a mapping."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except RecursionError:
        raise ValueError(f"{path}: nested too deep") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: the top level is no mapping")
    return content


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number in JSON")
