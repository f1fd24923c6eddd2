"""What is fuzzed: for each kind of input some good ones, and the function that a command reads it with.

A function may raise what `fedbench` prints as one sentence, `UserError` and `OSError`; anything else is a fault.
"""

import csv
import gzip
import io
import json
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import yaml
from fuzz_mutations import JSON, NUMBERS, YAML, mutated, mutated_json
from PIL import Image
from tiny_config import TINY
from torchvision.datasets.utils import extract_archive

from fedbench.config import Config, config_hash, load_config, read_words
from fedbench.config.grid import cells, differences, read_grid
from fedbench.config.load import read_yaml
from fedbench.config.schema import DataConfig, PartitionConfig
from fedbench.data import data_source
from fedbench.data.images import FileImages, Images
from fedbench.data.partitions.groups import by_groups
from fedbench.data.place import find
from fedbench.data.sources.fashion_mnist import _read as read_idx
from fedbench.errors import UserError
from fedbench.federation import checkpoint, payload
from fedbench.files import config_names
from fedbench.reporting.iso_budget import iso_budgets
from fedbench.reporting.leaderboard import csv_text, render
from fedbench.reporting.ranking import leaderboard
from fedbench.running.tuning import sample
from fedbench.tracking import client_rows
from fedbench.tracking.run_directory import CLIENT_ROWS, MANIFEST, ROUNDS, SUMMARY, RunDirectory
from fedbench.tracking.runs import gather

SENTENCES = (UserError, OSError)  # what the command line prints without a traceback
BINARY = (
    b"\0" * 4,
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    struct.pack("<Q", 2**63 - 1),
    b"{",
    b"'",
    b"-1",
)


@dataclass(frozen=True)
class Target:
    """`read` takes the bytes of an input; `draw` makes one of the good ones."""

    seeds: Sequence[bytes]
    read: Callable[[bytes], None]
    mutate: Callable[[Sequence[bytes], Random], bytes]

    def draw(self, random: Random) -> bytes:
        return self.mutate(self.seeds, random)


def by_tokens(*tokens: bytes) -> Callable[[Sequence[bytes], Random], bytes]:
    return lambda seeds, random: mutated(seeds, tokens, random)


def half_json(seeds: Sequence[bytes], random: Random) -> bytes:
    """Half of them still JSON, with odd values; the others perhaps none."""
    whole = random.random() < 0.5
    return mutated_json(seeds, random) if whole else mutated(seeds, (*JSON, *NUMBERS), random)


def targets(folder: Path) -> dict[str, Callable[[], Target]]:
    """Name -> what makes a target whose files lie in `folder`."""
    makers = {
        "configuration": configuration,
        "words": words,
        "grid": grid,
        "images": images,
        "npz": npz,
        "archives": archives,
        "idx": idx,
        "groups": groups,
        "payload": payloads,
        "checkpoint": checkpoints,
        "manifest": partial(run_file, name=MANIFEST),
        "summary": partial(run_file, name=SUMMARY),
        "clients": clients,
    }
    return {name: partial(make, folder) for name, make in makers.items()}


def _shipped(kind: str) -> list[bytes]:
    root = Path(__file__).parents[2] / "configs" / kind
    return [content for name in config_names(kind) if len(content := (root / f"{name}.yaml").read_bytes()) < 500]


def configuration(folder: Path) -> Target:
    file = folder / "config.yaml"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        config_hash(load_config(read_yaml(file)))

    whole = Config().model_dump(mode="json")
    parts = [yaml.safe_dump({key: whole[key]}).encode() for key in whole]
    return Target([*parts, yaml.safe_dump(TINY).encode(), *_shipped("presets")], read, by_tokens(*YAML, *NUMBERS))


def words(folder: Path) -> Target:
    """Overrides and sweeps, one a line."""

    def read(data: bytes) -> None:
        asked = read_words(data.decode(errors="surrogateescape").splitlines())
        config_hash(load_config(asked.overrides))

    seeds = [b"seed=3\nssl.name=byol\ndata.num_train=null", b"strategy=lw_fedssl@v3\nseed=0,1,2\nencoder.depth=2"]
    seeds += [b"strategy.calibration.epochs=3\ntracking.tags=[a, b]\nfederation.rounds_per_stage=[20, 28]"]
    return Target(seeds, read, by_tokens(*YAML, *NUMBERS, b".", b"..", b"=", b"/x.py:A", b"\n"))


def grid(folder: Path) -> Target:
    file = folder / "grid.yaml"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        found = read_grid(file)
        if found.tune:
            sample(found.tune)
        differences(cells(found, {}))

    small = [
        b"base: {encoder: {width: 48}}\naxes:\n  strategy: [fedssl, lw_fedssl@v3]\n  seed: [0, 1]\n"
        b"exclude:\n  - {strategy: fedssl, seed: 1}\n",
        b"cells:\n  - {strategy: fedssl, federation: {local_epochs: 1}}\n  - {strategy: prog_fedssl}\n"
        b"tune:\n  trials: 4\n"
        b"  space: {optimizer.base_lr: {low: 1.0e-3, high: 1.0e-1, log: true}, ssl.momentum: [1, 0]}\n",
        b"axes:\n  settings:\n    - {strategy: fedssl, optimizer: {base_lr: 0.1}}\n    - {strategy: lw_fedssl}\n",
    ]
    return Target(small, read, by_tokens(*YAML, *NUMBERS, b"settings", b"exclude", b"."))


def images(folder: Path) -> Target:
    file = folder / "image"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        list(FileImages([file]).read(torch.tensor([0]), 4, 3))

    return Target([*_pictures()], read, by_tokens(*BINARY))


def _pictures() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    kinds = {
        "RGB": ("PNG", "JPEG", "BMP", "WEBP", "TIFF"),
        "L": ("PNG", "JPEG"),
        "P": ("PNG", "BMP"),
        "1": ("TIFF",),
    }
    kinds |= {
        "CMYK": ("JPEG", "TIFF"),
        "LA": ("PNG",),
        "RGBA": ("PNG", "WEBP"),
        "I;16": ("PNG", "TIFF"),
        "F": ("TIFF",),
    }
    found = []
    for mode, formats in kinds.items():
        base = (
            Image.fromarray(pixels[..., 0].astype(np.uint16) * 200) if mode == "I;16" else Image.fromarray(pixels)
        )
        picture = base if mode == "I;16" else base.convert("RGB" if mode in "P1F" else mode).convert(mode)
        found += [_saved(picture, kind) for kind in formats]
    exif = Image.Exif()
    exif[0x0112] = 6
    found += [_saved(Image.fromarray(pixels[..., :3]), kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP")]
    found += [
        _saved(Image.fromarray(pixels), "TIFF", compression=how) for how in ("tiff_lzw", "tiff_adobe_deflate")
    ]
    return found + [_saved(Image.fromarray(pixels), kind) for kind in ("GIF", "DDS", "ICO")]


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def npz(folder: Path) -> Target:
    """The bytes are an archive, or else its `images.npy`, of which the checksum in the archive is right."""
    file = folder / "images.npz"
    data = DataConfig(name="npz", path=str(file))
    source = data_source(data)

    def read(content: bytes) -> None:
        if not content.startswith(b"\x93"):
            file.write_bytes(content)
        else:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("images.npy", content)
                archive.writestr("labels.npy", labels)
        _read_all(source.load(data, 4).train.images)

    pixels, labels = np.zeros((3, 5, 5), np.uint8), _npy(np.arange(3))
    seeds = [_npy(pixels), _npy(np.asfortranarray(pixels)), _npy(np.zeros((3, 2, 2, 3), np.uint8))]
    for save in (np.savez, np.savez_compressed):
        packed = io.BytesIO()
        save(packed, images=pixels, labels=np.arange(3), test_images=pixels, test_labels=np.arange(3))
        seeds.append(packed.getvalue())
    return Target(
        seeds, read, by_tokens(*BINARY, *NUMBERS, b"(", b")", b"True", b"|O", b"<i8", b"PK\x03\x04", b"a" * 99)
    )


def _npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _read_all(images: Any) -> None:
    if isinstance(images, Images):
        for _ in images.read(torch.arange(len(images)), 4, 1):
            pass


def archives(folder: Path) -> Target:
    """What is downloaded, unpacked as torchvision does it; a file outside is a fault."""
    root, allowed = folder / "unpacked", {"downloaded.tar.gz", "downloaded.zip", "unpacked"}

    def read(data: bytes) -> None:
        shutil.rmtree(root, ignore_errors=True)
        file = folder / ("downloaded.zip" if data.startswith(b"PK") else "downloaded.tar.gz")
        file.write_bytes(data if data.startswith(b"PK") else gzip.compress(data, 1))
        wanted = DataConfig(name="cifar10", path=str(root), download=True)
        try:
            find(wanted, (".",), "marker", lambda where: extract_archive(str(file), str(where)))
        finally:
            found = {path.name for path in folder.iterdir()}
            assert found <= allowed, f"planted: {found - allowed}"

    return Target(
        [*_tars(), *_zips()], read, by_tokens(*BINARY, b"../", b"/tmp/", b"..", b"a/b", b"\0", b"2", b"1")
    )


def _tars() -> list[bytes]:
    found = []
    for name, link in (
        ("marker", ""),
        ("../marker", ""),
        ("/marker", ""),
        ("a", "../../x"),
        ("a", "marker"),
        ("a/b", ""),
    ):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            member = tarfile.TarInfo(name)
            if link:
                member.type, member.linkname = tarfile.SYMTYPE, link
            archive.addfile(member)
            other = tarfile.TarInfo("marker")
            other.size = 3
            archive.addfile(other, io.BytesIO(b"abc"))
        found.append(file.getvalue()[:4096])
    return found


def _zips() -> list[bytes]:
    found = []
    for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", how) as archive:
            for name in ("marker", "../up", "/root", "a/../../b"):
                archive.writestr(name, b"abc" * 9)
        found.append(file.getvalue())
    return found


def idx(folder: Path) -> Target:
    """The published form of Fashion-MNIST; half of the inputs are wrapped anew."""
    file = folder / "images.gz"

    def read(data: bytes) -> None:
        file.write_bytes(data if data.startswith(b"\x1f\x8b") else gzip.compress(data, 1))
        read_idx(file, 3)

    plain = bytes([0, 0, 8, 3]) + np.array([2, 3, 3], ">u4").tobytes() + bytes(18)
    return Target([plain, gzip.compress(plain, mtime=0)], read, by_tokens(*BINARY))


def groups(folder: Path) -> Target:
    file = folder / "groups.csv"
    config = PartitionConfig(name="groups", file=str(file))
    names = [f"{number}.png" for number in range(6)]

    def read(data: bytes) -> None:
        file.write_bytes(data)
        by_groups(names, 3, config)

    seeds = []
    for quoting, end in ((csv.QUOTE_MINIMAL, "\n"), (csv.QUOTE_ALL, "\r\n")):
        text = io.StringIO()
        writer = csv.writer(text, quoting=quoting, lineterminator=end)
        writer.writerows([("image", "group"), *((name, f"g{row % 3}") for row, name in enumerate(names))])
        seeds.append(text.getvalue().encode())
    return Target(
        seeds, read, by_tokens(b",", b'"', b"\n", b"\r", b"image", b"group", b"\0", b"\xff", b";", b"x" * 9999)
    )


def payloads(folder: Path) -> Target:
    def read(data: bytes) -> None:
        payload.received_bytes(data, payload.decode(data))

    state = {
        "a.weight": torch.arange(6.0).reshape(2, 3),
        "a.bias": torch.ones(2, dtype=torch.int64),
        "n": torch.tensor(3),
    }
    seeds = [payload.encode(state), payload.encode({}), payload.encode({"b": torch.ones(1, dtype=torch.bfloat16)})]
    return Target(
        seeds, read, by_tokens(*BINARY, *JSON, *NUMBERS, b"F32", b"F8_E8M0", b"I64", b"BOOL", b"F4", b"[0,24]")
    )


def checkpoints(folder: Path) -> Target:
    def read(data: bytes) -> None:
        (folder / checkpoint.NAME).write_bytes(data)
        checkpoint.read(folder, "hash", lambda sizes: all(size >= 0 for size in sizes.values()))

    facts = {"sizes": {"rounds.jsonl": 3}, "rounds": 1, "stage": 1}
    checkpoint.Checkpoint("hash", facts, {"server.a": torch.ones(2, 3)}).write(folder)
    whole = (folder / checkpoint.NAME).read_bytes()
    return Target(
        [whole], read, by_tokens(*BINARY, *JSON, *NUMBERS, b"F16", b"facts", b"sha256", b"sizes", b"__metadata__")
    )


def run_file(folder: Path, name: str) -> Target:
    """One of two finished runs, whose `name` is damaged, through all that a leaderboard computes."""
    directories = [_finished(folder / "runs" / str(seed), seed) for seed in (0, 1)]
    file = directories[0].path / name

    def read(data: bytes) -> None:
        file.write_bytes(data)
        runs, _ = gather([folder / "runs"])
        rows = leaderboard(runs)
        render(rows)
        csv_text(rows)
        iso_budgets(rows)

    return Target([file.read_bytes()], read, half_json)


def _finished(path: Path, seed: int) -> RunDirectory:
    config = load_config(TINY, {"seed": seed})
    hashes = {"cell_hash": config_hash(config), "data_hash": "d1", "sources": {"strategy": "a", "ssl": "b"}}
    more = {"device": "cpu", "started": "2026-01-01T00:00:00+00:00", "processor": "abacus", "accelerator": None}
    directory = RunDirectory(path)
    directory.start({"cell_name": path.name, "config": config.model_dump(mode="json"), **hashes, **more})
    summary = json.loads((Path(__file__).parent / "summary.json").read_text())
    directory.finish(summary, {"w": torch.ones(2)})
    return directory


def clients(folder: Path) -> Target:
    """Rows of clients, as somebody asks for them who goes on to count with them."""
    run = RunDirectory(folder / "run")
    run.path.mkdir(exist_ok=True)
    (run.path / ROUNDS).write_text('{"round": 0}\n{"round": 1}\n')

    def read(data: bytes) -> None:
        (run.path / CLIENT_ROWS).write_bytes(data)
        run.clients().to_pydict()

    columns: dict[str, list[Any]] = {name: [1, None, 3] for name in client_rows.SCHEMA.names}
    columns |= {"state": ["returned", "lost_after", "rejected"], "reason": [None, None, "is not finite"]}
    rounds = [client_rows.batch(columns), client_rows.batch({name: [] for name in columns})]
    seeds = [client_rows.head() + b"".join(rounds[:: 1 - 2 * turned]) for turned in (False, True)]
    return Target(seeds, read, by_tokens(*BINARY, b"\xff\xff\xff\xff\x10\x04\0\0", b"\x01\0\0\0", b"ARROW1\0\0"))
