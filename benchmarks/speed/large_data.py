"""A set larger than memory trains as fast as one that is in memory: its pixels are mapped, and read when needed.

    python benchmarks/speed/large_data.py --folder FOLDER [--gib 6] [--rounds 8]

`FOLDER` is on a local disk with twice `--gib` free: an archive of random 64 x 64 images, and their decoded cache
(XDG_CACHE_HOME is set to it). The set that fits is a 32nd of that. In turns, a round each of both and of a third
contestant:

- fits: the smaller set, which the reading of its hash has brought into memory.
- cold: the larger set. Before every round, outside the time measured, all of it is thrown out of memory: the pages
  mapped by this process (MADV_DONTNEED), then the system's cache of the file (POSIX_FADV_DONTNEED). Each image of
  the round comes from the disk, as it would from a set many times as large as memory.
- fits, cold: the smaller set, thrown out in the same way. What differs from `cold` is the size of the set alone.

Every client has 512 images, and two of them train in a round (SimCLR, ViT of width 96, depth 4, patch 8, batch 64,
two threads). Printed are seconds a round, the ratio to `fits` in the same turn, and what was read from the disk by
the kernel's count (/proc/self/io), so that a round that was not cold would show. A virtual disk may have a cache
of its host behind it: the speed of the disk is printed, too, read in order and one image at a time.
"""

import argparse
import ctypes
import mmap
import os
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SIDE, OF_A_CLIENT, PARTICIPANTS = 64, 512, 2
IMAGE = SIDE * SIDE * 3  # bytes
PIECE = 1 << 13  # images written at a time
LIBC = ctypes.CDLL(None, use_errno=True)


class Set(NamedTuple):
    """A set of images: its decoded file, that file mapped into memory, and a federation that trains on it."""

    file: Path
    images: Tensor
    rounds: Iterator[object]


def write_archive(path: Path, images: int) -> None:
    """An npz of random images and labels, a piece at a time."""
    draw = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, count in (("images", images), ("test_images", 40)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, SIDE, SIDE, 3)}
                np.lib.format.write_array_header_1_0(file, header)
                for begin in range(0, count, PIECE):
                    file.write(draw.bytes(min(PIECE, count - begin) * IMAGE))
        for name, count in (("labels", images), ("test_labels", 40)):
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.arange(count) % 4)


def build(folder: Path, images: int, rounds: int, ends: ExitStack) -> Set:
    """Write, decode and hash a set of so many images."""
    from fedbench.config import load_config
    from fedbench.federation.experiment import prepare
    from fedbench.federation.federation import Federation

    path = folder / f"{images}.npz"
    if not path.exists():
        write_archive(path, images)
    tree = {
        "ssl": {"name": "simclr", "hidden_dim": 128, "output_dim": 64},
        "encoder": {
            "width": 96,
            "depth": 4,
            "heads": 3,
            "patch_size": 8,
            "image_size": SIDE,
            "in_channels": 3,
        },
        "data": {"name": "npz", "path": str(path)},
        "federation": {
            "num_clients": images // OF_A_CLIENT,
            "participants": PARTICIPANTS,
            "rounds": rounds,
            "local_epochs": 1,
        },
        "optimizer": {"batch_size": 64},
        "accelerator": "cpu",
    }
    experiment = prepare(load_config(tree))
    federation = ends.enter_context(closing(Federation(experiment, folder)))
    pool = experiment.dataset.train_images
    (file,) = (one for one in folder.glob("fedbench/*.npy") if one.stat().st_size // IMAGE == images)
    return Set(file, pool, federation.rounds())


def throw_out(one: Set) -> None:
    """Have no page of the set in memory."""
    begin = one.images.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    length = one.images.data_ptr() + one.images.nbytes - begin
    if LIBC.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), mmap.MADV_DONTNEED):
        raise OSError(ctypes.get_errno(), "madvise")
    uncache(one.file)


def uncache(file: Path) -> None:
    """Have the system forget what it has of a file that nobody has mapped pages of."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_bytes() -> int:
    """That this process has had read from disks."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def speed(file: Path, count: int = 2000) -> tuple[float, float]:
    """Of the disk: MB/s in order, and images a second one at a time; the file is cold before and after."""
    uncache(file)
    with file.open("rb", buffering=0) as handle:
        start = perf_counter()
        for _ in range(64):
            handle.read(1 << 22)
        in_order = 64 * (1 << 22) / 1e6 / (perf_counter() - start)
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        draw, last = Random(0), file.stat().st_size // IMAGE - 1
        start = perf_counter()
        for _ in range(count):
            os.pread(handle.fileno(), IMAGE, draw.randrange(last) * IMAGE)
        alone = count / (perf_counter() - start)
    uncache(file)
    return in_order, alone


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--gib", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=8)
    asked = parser.parse_args()
    folder = asked.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(folder)
    torch.set_num_threads(2)
    images = int(asked.gib * 2**30 / IMAGE) // (32 * OF_A_CLIENT) * 32 * OF_A_CLIENT
    with ExitStack() as ends:
        rounds = 3 * (asked.rounds + 1)
        large, small = (build(folder, count, rounds, ends) for count in (images, images // 32))
        throw_out(large)
        print(f"{large.images.nbytes / 2**30:.2f} GiB and {small.images.nbytes / 2**20:.0f} MiB;", end=" ")
        print("the disk: {:.0f} MB/s in order, {:.0f} images a second one at a time".format(*speed(large.file)))
        turns = {"fits": (small, False), "cold": (large, True), "fits, cold": (small, True)}
        seconds, read = ({name: list[float]() for name in turns} for _ in range(2))
        for _ in range(asked.rounds + 1):  # the first warms up
            for name, (one, is_cold) in turns.items():
                _ = one.images.sum(dtype=torch.int64) if one is small and not is_cold else throw_out(one)
                before, start = disk_bytes(), perf_counter()
                next(one.rounds)
                seconds[name].append(perf_counter() - start)
                read[name].append(disk_bytes() - before)
    print("\n| | s a round | of `fits` in the same turn | read from the disk, MB a round |\n|---|--:|--:|--:|")
    for name in turns:
        own = seconds[name][1:]
        ratios = [mine / theirs for mine, theirs in zip(own, seconds["fits"][1:], strict=True)]
        print(
            f"| {name} | {median(own):.2f} ({min(own):.2f} to {max(own):.2f}) "
            f"| {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) "
            f"| {median(read[name][1:]) / 1e6:.1f} |"
        )


if __name__ == "__main__":
    main()
