"""`verify`: are the files of a run those that it wrote; does a round that is trained again give the same bits."""

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from fedbench.config import Config, load_config
from fedbench.config.load import flat
from fedbench.errors import UserError, shorten
from fedbench.escaping import in_markdown
from fedbench.federation import checkpoint
from fedbench.federation.checkpoint import Checkpoint
from fedbench.federation.experiment import Experiment, prepare
from fedbench.federation.federation import Federation
from fedbench.federation.record import RoundRecord
from fedbench.numerics import settle
from fedbench.running.cell import identity
from fedbench.running.reproduce import MAY_DIFFER
from fedbench.tables import markdown
from fedbench.tensor_file import DamagedError
from fedbench.tracking.run_directory import (
    CLIENT_ROWS,
    CLIENTS,
    ENCODER,
    FILES,
    MANIFEST,
    ROUNDS,
    SUMMARY,
    RunDirectory,
    to_json,
)
from fedbench.tracking.runs import kernels, run_directories

UNLIKE = (
    "seconds",
    "workers/",
    "client/memory_source",
    "client/cuda_",
    "probe/",
    "features/",
)  # no bits of a round
UNLIKE_OF_CLIENTS = ("seconds", "worker_deaths", "peak_memory_bytes", "cuda_")  # the largest peak is in the line
Tree = Mapping[str, Any]


def verify(paths: Iterable[Path], rerun: int | None, overrides: Tree) -> tuple[str, bool]:
    """Check the files of runs, and train round `rerun` (0-based, as in rounds.jsonl) of each again.

    Args:
        overrides: keys that no result depends on, such as where the data are.

    Returns: a table of the runs, and whether all are right.

    Raises:
        UserError: there is no run, or a key would make it another cell.
    """
    refused = [key for key in flat(overrides) if not key.startswith(MAY_DIFFER)]
    if refused:
        raise UserError(f"{refused[0]} would make it another cell; allowed: {', '.join(MAY_DIFFER)}")
    paths = list(paths)
    directories = [RunDirectory(path) for folder in paths for path in run_directories(folder)]
    rows = [[name, f"{MANIFEST} is missing", *["-"] * (rerun is not None)] for name in _without_manifest(paths)]
    if not directories and not rows:
        raise UserError(f"no run in {', '.join(map(str, paths))}; `run` makes some")
    right = not rows
    for directory in directories:
        wrong, words = _files(directory)
        row = [directory.path.name, words]
        if rerun is not None:
            unequal, told = ("-", "its files are damaged") if wrong else _tried_again(directory, rerun, overrides)
            wrong, row = wrong or bool(unequal), [*row, told]
        right = right and not wrong
        rows.append([in_markdown(cell) for cell in row])
    headers = ["run", "files", *([f"round {rerun} again"] if rerun is not None else [])]
    return markdown(headers, rows, left=len(headers)), right


def _files(directory: RunDirectory) -> tuple[bool, str]:
    """Whether something is wrong with them, and what, in words."""
    if not (directory.path / SUMMARY).is_file():
        return _unfinished(directory)
    try:
        wrong, names = directory.damage(), directory.summary().get(FILES, {})
    except (OSError, ValueError, AttributeError) as error:
        return True, f"{SUMMARY} cannot be read: {error}"
    if wrong:
        return True, "; ".join(wrong)
    return False, f"{len(names) + 1} as written" if names else "of an earlier version, which vouched for none"


def _unfinished(directory: RunDirectory) -> tuple[bool, str]:
    try:
        found = checkpoint.newest(directory.path)
    except (DamagedError, OSError) as error:
        return True, f"not finished, and {error}"
    if found is None:
        begun = (directory.path / ROUNDS).is_file()
        return begun, "neither a summary nor a checkpoint vouches for them" if begun else "no round is over yet"
    why = directory.unlike(found.facts.get("marks", {}))
    return bool(why), f"not finished; {why or 'as its checkpoint vouches for them'}"


def _without_manifest(paths: Iterable[Path]) -> list[str]:
    """Folders that hold files of a run, and not the one that says which."""
    folders = [folder for path in paths for folder in (path, *sorted(path.iterdir())) if folder.is_dir()]
    signs = (SUMMARY, ROUNDS, ENCODER)
    return [
        folder.name
        for folder in folders
        if not (folder / MANIFEST).exists() and any((folder / name).is_file() for name in signs)
    ]


def _tried_again(directory: RunDirectory, number: int, overrides: Tree) -> tuple[str, str]:
    """The same as `_again`; of a run that cannot be trained again, why."""
    try:
        return _again(directory, number, overrides)
    except (UserError, OSError, EOFError, LookupError, ValueError) as error:
        return "-", f"could not be trained again: {shorten(' '.join(str(error).split()), 300)}"


def _again(directory: RunDirectory, number: int, overrides: Tree) -> tuple[str, str]:
    """What is not equal, if anything, and how it was found, in words."""
    lines = {line["round"]: line for line in directory.rounds()}
    if number not in lines:
        raise UserError(f"--rerun {number}: {directory.path.name} has no such round; it has {len(lines)}")
    experiment = _experiment(directory, overrides)
    start = _start(directory, number, experiment)
    settle(experiment.config)
    with tempfile.TemporaryDirectory() as folder, closing(Federation(experiment, Path(folder))) as federation:
        if start is not None:
            federation.resume(start)
        for record in federation.rounds():
            if record.round_index == number:
                break
        found = _line(record, federation)
        ledger = [list(map(str, row)) for row in record.ledger()]
    unequal = [key for key in lines[number].keys() & found.keys() if lines[number][key] != found[key]]
    written = [list(row.values()) for row in directory.ledger() if int(row["round"]) == number]
    unequal += ["ledger"] if ledger != written else []
    unequal += _unequal_columns(directory, record)
    begun = (
        f"from the checkpoint after round {start.facts['rounds_done'] - 1}" if start else "from the first round"
    )
    vouched = (
        "" if "server/sha256" in lines[number] else " (an earlier version, which noted no digest of the model)"
    )
    if not unequal:
        return "", f"equal{vouched}, trained {begun}"
    return ", ".join(
        sorted(unequal)
    ), f"NOT EQUAL: {', '.join(sorted(unequal))}; trained {begun}{_other(directory)}"


def _line(record: RoundRecord, federation: Federation) -> dict[str, Any]:
    line = record.to_dict() | {"server/sha256": federation.checkpoint("").digest}
    as_written: dict[str, Any] = json.loads(to_json(line))
    return {key: value for key, value in as_written.items() if not key.startswith(UNLIKE)}


def _unequal_columns(directory: RunDirectory, record: RoundRecord) -> list[str]:
    """Columns of clients.arrow in which a client of the round is another, or has another figure."""
    if not (directory.path / CLIENT_ROWS).is_file():  # an earlier version, whose lines have lists of clients
        return []
    import pyarrow.compute

    rows = directory.clients()
    written = rows.filter(pyarrow.compute.equal(rows["round"], record.round_index)).to_pydict()
    compared = {k: v for k, v in record.clients().items() if not k.startswith(UNLIKE_OF_CLIENTS)}
    return [f"clients/{key}" for key, values in compared.items() if to_json(values) != to_json(written[key])]


def _experiment(directory: RunDirectory, overrides: Tree) -> Experiment:
    """The run's own, in this process. UserError: the data or the code of a plugin are others."""
    manifest = directory.manifest()
    config: Config = load_config(manifest["config"], {"accelerator": manifest["device"]}, overrides)
    experiment = prepare(config)
    cell_hash = identity(experiment)
    if cell_hash != manifest["cell_hash"]:
        raise UserError(
            f"{directory.path.name} is the cell {manifest['cell_hash']}, with these data and plugins it is "
            f"{cell_hash}; allowed: those of the run (data.path=PATH says where the data are)"
        )
    return experiment


def _start(directory: RunDirectory, number: int, experiment: Experiment) -> Checkpoint | None:
    """The newest checkpoint from before the round; None where there is none, or where clients keep something.

    What clients had kept by then is there no more.
    """
    if (directory.path / CLIENTS).is_dir():
        return None
    found: Sequence[Checkpoint] = checkpoint.kept(directory.path, identity(experiment))
    return next((one for one in found if one.facts["rounds_done"] <= number), None)


def _other(directory: RunDirectory) -> str:
    """That another machine may compute other bits, where this is one."""
    from fedbench.tracking.manifest import numerics

    then = directory.manifest()
    now = {**then, "numerics": numerics()}
    same = kernels(then) == kernels(now)
    return "" if same else f" (kernels {kernels(then)} then, {kernels(now)} now: other bits are no fault)"
