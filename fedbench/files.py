"""Files: shipped ones by name, and those that are either the old ones or the new ones, never a part."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from socket import gethostname

LOCK = ".lock"
CHECKPOINTS = "checkpoint-*.safetensors"  # of a run, kept for good because its configuration asks for it


def user_path(text: str | Path) -> Path:
    """A path as a user wrote it: `~` is the home folder, as in a shell, which leaves it in `--out=~/runs`."""
    return Path(os.path.expanduser(text))  # noqa: PTH111  (Path.expanduser fails on an unknown user's `~name`)


def cache_folder() -> Path:
    """`fedbench` in the user's cache folder, which XDG_CACHE_HOME names."""
    home = os.environ.get("XDG_CACHE_HOME")
    return user_path(home or "~/.cache") / "fedbench"


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` in one step: a reader sees the old content or the new, never a part.

    A link is replaced, not followed.
    """
    part = path.with_name(f".{path.name}.{gethostname()}.{os.getpid()}.part")
    try:
        part.unlink(missing_ok=True)  # what a kill left, or a link that leads elsewhere
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def exclusive(folder: Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process has `folder` for itself; it ends with the block, or with the process.

    The lock is on a file in it, because network file systems lock no folders.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK, wait) as mine:
        yield mine


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process has the lock of a file, which is made if it is not there; see `exclusive`."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = True
    except BlockingIOError:
        mine = False
    try:
        yield mine
    finally:
        os.close(handle)


def append(path: Path, content: bytes) -> None:
    """Add to the end of `path`; it is on the disk when the call returns. OSError: it is a link."""
    is_new = not path.exists()
    with open(path, "ab", opener=_no_link) as file:  # Path.open takes no opener
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)


def write_at(path: Path, offset: int, content: bytes) -> None:
    """Replace what is behind `offset` in `path`, which has as much. OSError: it has not, or is a link."""
    handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    with os.fdopen(handle, "wb") as file:
        if (size := os.fstat(handle).st_size) < offset:
            raise OSError(
                errno.EINVAL, f"it has {size} bytes, and lacks some of the {offset} that it must have", str(path)
            )
        file.truncate(offset)
        file.seek(offset)
        file.write(content)
        file.flush()
        os.fsync(handle)


def sync_folder(folder: Path) -> None:
    """Bring the names of its files to the disk: after a power cut a new file is there under its name."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system on which folders cannot be synced
            raise
    finally:
        os.close(handle)


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def config_names(kind: str) -> list[str]:
    """Names of the shipped files of a kind (`grids` or `presets`), without `.yaml`."""
    folder = Path(str(resources.files("fedbench.configs") / kind))
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
