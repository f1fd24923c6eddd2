"""Faults of disks and files: full, slow, a bit flipped, the last pages lost."""

import errno
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from suffering import Line, config, directory, result

from fedbench.api import federate
from fedbench.errors import UserError
from fedbench.federation.experiment import prepare
from fedbench.pretrained import load_encoder
from fedbench.running.cell import run_cell
from fedbench.running.verify import verify

ROUND = 2  # after which a run is stopped, and damaged
BITS = 5  # flipped in each file, one at a time
TOLD = ("damaged", "begun anew", "belongs to another")  # with the way out


class FullError(OSError):
    """A full disk."""


@contextmanager
def full_disk(at: int) -> Iterator[list[int]]:
    """The `at`-th time that something is brought to the disk, and from then on, there is no room; counts them."""
    count, real = [0], os.fsync

    def sync(handle: int) -> None:
        count[0] += 1
        if count[0] >= at:
            raise FullError(errno.ENOSPC, "No space left on device")
        real(handle)

    with patch("fedbench.files.os.fsync", sync):
        yield count


def full_at_every_write(out: Path, whole: tuple[Any, ...], share: int) -> Line:
    """The disk is full from the n-th write on, for every n; then there is room again."""
    with full_disk(10**9) as count:
        run_cell(prepare(config()), out / "count")
    places, survived, equal = range(1, count[0] + 1, share), 0, 0
    for place in places:
        with full_disk(place):
            try:
                run_cell(prepare(config()), out / f"full{place}")
            except FullError:
                survived += 1
        run_cell(prepare(config()), out / f"full{place}")
        equal += result(out / f"full{place}") == whole
    return Line("a full disk, at every write", len(places), survived, equal)


def slow(out: Path, whole: tuple[Any, ...]) -> Line:
    """Every write takes a fifth of a second."""
    real = os.fsync

    def sync(handle: int) -> None:
        time.sleep(0.2)
        real(handle)

    with patch("fedbench.files.os.fsync", sync):
        run_cell(prepare(config()), out / "slow")
    return Line("a slow disk", 1, 1, int(result(out / "slow") == whole))


def flipped(path: Path, draw: random.Random) -> None:
    """One bit anywhere in the file."""
    content = bytearray(path.read_bytes())
    place = draw.randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


def cut(path: Path, draw: random.Random) -> None:
    """The last pages never came to the disk."""
    with path.open("r+b") as file:
        file.truncate(draw.randrange(path.stat().st_size))


def every_file_of_a_stopped_run(
    out: Path, whole: tuple[Any, ...], share: int, damage: Callable[[Path, random.Random], None]
) -> Line:
    """One file at a time of a run that was stopped is damaged; then the same command."""
    shutil.rmtree(out / "stopped", ignore_errors=True)
    with closing(federate(config(), out=out / "stopped")) as rounds:
        for _ in range(ROUND):
            next(rounds)
    stopped = directory(out / "stopped").path
    files = [path for path in sorted(stopped.rglob("*")) if path.is_file() and path.stat().st_size]
    cases, survived, equal = [(path, bit) for path in files for bit in range(BITS)][::share], 0, 0
    for number, (path, bit) in enumerate(cases):
        copy = out / f"{damage.__name__}{number}"
        shutil.copytree(out / "stopped", copy)
        damage(copy / path.relative_to(out / "stopped"), random.Random(f"{path.name} {bit}"))
        try:
            run_cell(prepare(config()), copy)
            survived += 1
        except UserError as error:
            survived += any(words in str(error) for words in TOLD)
            shutil.rmtree(directory(copy).path)
            run_cell(prepare(config()), copy)
        equal += result(copy) == whole
    return Line(f"{len(files)} files of a stopped run, {damage.__name__}", len(cases), survived, equal)


def every_file_of_a_finished_run(out: Path, whole: tuple[Any, ...], share: int) -> Line:
    """One bit in one file of a finished run: `verify` tells, and a flipped encoder is not loaded."""
    run = directory(out / "a").path
    files = [path for path in sorted(run.iterdir()) if path.is_file() and path.stat().st_size]
    cases, told = [(path, bit) for path in files for bit in range(BITS)][::share], 0
    for path, bit in cases:
        before = path.read_bytes()
        flipped(path, random.Random(f"{path.name} {bit}"))
        told += not verify([run], None, {})[1] and (path.name != "encoder.safetensors" or not loads(run))
        path.write_bytes(before)
    equal = len(cases) if result(out / "a") == whole and verify([run], None, {})[1] else 0
    return Line(f"{len(files)} files of a finished run, flipped", len(cases), told, equal)


def loads(run: Path) -> bool:
    """Whether its encoder is given to anybody."""
    try:
        load_encoder(run)
    except UserError:
        return False
    return True
