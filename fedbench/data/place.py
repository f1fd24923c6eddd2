"""Where the files of a published data set lie, and how they get there."""

from collections.abc import Callable, Sequence
from pathlib import Path

from fedbench.config.schema import DataConfig
from fedbench.errors import UserError, shorten
from fedbench.files import user_path

MAX_LIST = 50_000_000  # bytes of a list of classes or of images


def root_of(data: DataConfig) -> Path:
    """`data.path`, or `data/NAME` where it is not given."""
    return user_path(data.path or f"data/{data.name}")


def existing_folder(data: DataConfig) -> Path:
    """`data.path`; UserError if it is no folder."""
    if not root_of(data).is_dir():
        raise UserError(f"data.path={data.path}: no such folder; allowed: a folder of images or of classes")
    return root_of(data)


def find(
    data: DataConfig,
    folders: Sequence[str],
    marker: str,
    fetch: Callable[[Path], object] | None = None,
    published: str = "",
) -> Path:
    """The first of `folders` below `root_of(data)` in which `marker` exists.

    If there is none, `fetch(root)` downloads it, where `data.download` allows that. UserError: the download
    failed; or there is no such folder, with the command to run or, of a set that is not downloaded, where it is
    `published`.
    """
    root = root_of(data)
    found = _first(root, folders, marker)
    if found is None and fetch is not None and data.download:
        _download(data, root, fetch)
        found = _first(root, folders, marker)
    if found is None:
        where = " or ".join(str(root / folder) for folder in folders)
        get = (
            "run the same command with data.download=true to download it" if fetch else f"unpack {published} there"
        )
        raise UserError(f"data.name={data.name}: no {marker} in {where}; {get}, or name its folder: data.path=...")
    return found


def _first(root: Path, folders: Sequence[str], marker: str) -> Path | None:
    return next((root / folder for folder in folders if (root / folder / marker).exists()), None)


def _download(data: DataConfig, root: Path, fetch: Callable[[Path], object]) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        fetch(root)
    except MemoryError:
        raise
    except Exception as error:  # the network, a checksum, a member that leads outside; tarfile raises many kinds
        raise UserError(
            f"data.download=true: {data.name} could not be downloaded into {root} ({shorten(str(error))}); "
            "try again, or put its files there"
        ) from error


def read_lines(file: Path) -> list[str]:
    """The lines of a text file that are not empty. UserError: there is none, or no such file."""
    try:
        check_size(file, MAX_LIST)
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise broken(file, str(error)) from error
    if not lines:
        raise broken(file, "it is empty")
    return lines


def check_size(file: Path, allowed: int) -> None:
    """Before it is read. UserError: it has more than `allowed` bytes. OSError: there is no such file."""
    size = file.stat().st_size
    if size > allowed:
        raise broken(file, f"{size:,} bytes; allowed: {allowed:,}")


def broken(file: Path, reason: str) -> UserError:
    """A published file that is not as it was published."""
    return UserError(f"data.path: cannot read {file} ({reason}); replace it, or delete it and data.download=true")
