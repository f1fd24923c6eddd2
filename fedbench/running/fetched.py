"""A run directory on a machine that does not see the folder of results: copied there, and back after each round.

Growing files go first, the checkpoint after all that it vouches for, the summary last: wherever the line breaks,
what has arrived can be gone on from.
"""

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory, gettempdir
from typing import NamedTuple

from fedbench.errors import UserError, shown
from fedbench.federation import checkpoint
from fedbench.files import LOCK, exclusive, write_at, write_atomically
from fedbench.tracking.run_directory import GROWING, PARTS, ROUNDS, SUMMARY

PREFIX = "fedbench-cell-"
MIRROR = "wandb"  # folder of W&B's own files, which a run that goes on writes anew: they are sent at its end
OLD_S = 60.0  # a scratch folder of which nobody has the lock is somebody's who is just starting


class Change(NamedTuple):
    """Of one file.

    Attributes:
        name: from the run directory, with `/` between its parts.
        content: None where the file is gone.
        offset: None where `content` is the whole file; else where it begins, and nothing is behind it.
    """

    name: str
    content: bytes | None
    offset: int | None = None


class Stamp(NamedTuple):
    """Of a file's state: it is another one where the file has changed."""

    inode: int
    modified_ns: int
    size: int


def names_in(folder: Path) -> Iterator[str]:
    """Of the files that make up a run: no link, no lock, nothing that a kill left."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if name != LOCK and not fnmatch(name, PARTS) and path.is_file() and not path.is_symlink():
                yield path.relative_to(folder).as_posix()


def contents(folder: Path) -> dict[str, bytes]:
    """What a run needs to go on: name -> content."""
    return {name: (folder / name).read_bytes() for name in names_in(folder) if not _is_mirror(name)}


def unpack(files: Mapping[str, bytes], folder: Path) -> None:
    """Make `folder` a copy of the one whose `contents` these are."""
    for name, content in files.items():
        write_atomically(_place(folder, name), content)


class Outgoing:
    """Tells what has changed in a run directory since it was asked last; at first, since it was made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # A run that goes on cuts the growing ones back, so that nothing can be added to what the other side has.
        self._sent = {name: stamp for name, stamp in self._stamps(False).items() if name not in GROWING}
        self._there = set(names_in(folder))

    def changes(self, ended: bool = False) -> list[Change]:
        """In the order in which they must arrive; `ended`: the run is, and its mirror can be sent."""
        now = self._stamps(ended)
        gone = [Change(name, None) for name in sorted(self._there - now.keys() - {checkpoint.PREVIOUS})]
        new = [
            self._change(name, now[name]) for name in sorted(now, key=_turn) if self._sent.get(name) != now[name]
        ]
        self._sent, self._there = now, set(now)
        first = [change for change in gone if change.name == SUMMARY]  # without it the run counts as unfinished
        return [*first, *new, *(change for change in gone if change not in first)]

    def _stamps(self, ended: bool) -> dict[str, Stamp]:
        stats = {
            name: (self.folder / name).stat()
            for name in names_in(self.folder)
            if name != checkpoint.PREVIOUS and (ended or not _is_mirror(name))
        }
        return {name: Stamp(one.st_ino, one.st_mtime_ns, one.st_size) for name, one in stats.items()}

    def _change(self, name: str, stamp: Stamp) -> Change:
        before = self._sent.get(name)
        if name not in GROWING or before is None or before.inode != stamp.inode or before.size > stamp.size:
            return Change(name, (self.folder / name).read_bytes())
        with (self.folder / name).open("rb") as file:
            file.seek(before.size)
            return Change(name, file.read(), before.size)


def _turn(name: str) -> tuple[int, str]:
    turns = {**dict.fromkeys(GROWING, 0), ROUNDS: 1, checkpoint.NAME: 3, SUMMARY: 4}  # a round's line tells of it
    return turns.get(name, 2), name


def _is_mirror(name: str) -> bool:
    return name.startswith(f"{MIRROR}/")


def apply(changes: Iterable[Change], folder: Path) -> None:
    """Make them in `folder`, each file in one step.

    Raises:
        UserError: a name leads out of `folder`.
        OSError: one cannot be written.
    """
    for name, content, offset in changes:
        path = _place(folder, name)
        if name == checkpoint.NAME:  # the one before it is kept beside it, on both sides
            checkpoint.replace(folder, content) if content is not None else checkpoint.remove(folder)
        elif content is None:
            path.unlink(missing_ok=True)
        elif offset is None:
            write_atomically(path, content)
        else:
            write_at(path, offset, content)


def _place(folder: Path, name: str) -> Path:
    """Where the file goes; its folder is there afterwards."""
    parts = PurePosixPath(name).parts
    path = folder.joinpath(*parts)
    between = path.parents[: len(parts) - 1]
    if not parts or name.startswith("/") or ".." in parts or any(one.is_symlink() for one in between):
        raise UserError(f"{shown(name)} leads out of {folder}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder of this machine's own, gone with the block; what killed processes left of theirs goes first."""
    for left in Path(gettempdir()).glob(f"{PREFIX}*"):
        _sweep(left)
    with TemporaryDirectory(prefix=PREFIX) as name, exclusive(Path(name)):
        yield Path(name)


def _sweep(left: Path) -> None:
    try:
        stat = left.lstat()
        if stat.st_uid != os.getuid() or left.is_symlink() or time.time() - stat.st_mtime < OLD_S:
            return
        with exclusive(left) as nobodys:
            if nobodys:
                shutil.rmtree(left, ignore_errors=True)
    except OSError:  # somebody else was faster
        return
