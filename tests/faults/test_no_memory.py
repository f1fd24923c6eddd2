"""Memory that runs out, or would, is a sentence and exit code 2, never a traceback."""

import os
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from fedbench import cli
from fedbench.data import images
from fedbench.data.dataset import _load
from fedbench.data.images import FileImages
from fedbench.data.partitions.groups import read_groups
from fedbench.errors import UserError
from fedbench.federation.client import Worker
from fedbench.federation.engines.remote import Attendant, Failure, RemoteWorker, identity
from fedbench.federation.engines.schedule import Arrival
from fedbench.federation.experiment import prepare
from fedbench.federation.payload import decode, encode
from fedbench.running.cells import run_cells


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 8 TiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: " + "x" * 9999
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
    ],
)
def test_memory_that_runs_out_anywhere_is_one_line_and_exit_code_2(monkeypatch, capsys, error) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "keys_command", fail)
    assert cli.main(["keys"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("fedbench: this needs more memory than there is: ")
    assert len(lines[0]) < 400


def fail_in_a_client(self: object, *_: object) -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


def test_memory_that_runs_out_in_a_cell_is_told_in_a_line(tmp_path: Path, tiny, monkeypatch, capsys) -> None:
    monkeypatch.setattr(Worker, "train", fail_in_a_client)
    assert run_cells([tiny()], tmp_path) == {"failed": 1}
    assert "FAILED, this needs more memory than there is: DefaultCPUAllocator" in capsys.readouterr().err


def test_memory_that_runs_out_in_a_worker_is_the_users_to_mend(tmp_path: Path, tiny, monkeypatch) -> None:
    monkeypatch.setattr(Attendant, "train", fail_in_a_client)
    worker = RemoteWorker(tiny(), identity(prepare(tiny())), tmp_path)
    assert worker.arrive() == Arrival()
    failure = worker.answer(Mock())
    assert isinstance(failure, Failure)
    assert failure.is_users
    assert failure.text.startswith("this needs more memory than there is: DefaultCPUAllocator")


def test_another_error_of_the_same_kind_keeps_its_traceback(monkeypatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(cli, "keys_command", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        cli.main(["keys"])


def test_images_that_would_fill_the_memory_are_refused_before_they_are_made(monkeypatch, capsys) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: 1_000_000 if name == "SC_PHYS_PAGES" else 4096)
    _load.cache_clear()
    words = ["partition", "encoder.image_size=4096", "encoder.patch_size=64"]
    assert cli.main(words) == 2
    assert "the images are 24.1 GB in memory; allowed: 2.0 GB" in capsys.readouterr().err


def test_large_images_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch) -> None:
    files = [tmp_path / f"{number}.png" for number in range(6)]
    for file in files:
        Image.new("L", (40, 40)).save(file)
    busy, most, plain = [], [], images._plain

    def slow(picture: Image.Image) -> Image.Image:
        busy.append(threading.get_ident())
        time.sleep(0.02)
        most.append(len(busy))
        busy.pop()
        return plain(picture)

    monkeypatch.setattr(images, "_plain", slow)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for large, at_once in ((1600, 4), (1599, 1)):
        monkeypatch.setattr(images, "LARGE", large)
        most.clear()
        list(FileImages(files).read(torch.arange(6), 4, 1))
        assert (max(most) > 1) == (at_once > 1)


def test_a_pipe_of_groups_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "groups.csv")
    for file in (tmp_path / "groups.csv", Path("/dev/zero")):
        with pytest.raises(UserError, match=r"cannot be read \(no such file\); allowed: a CSV file"):
            read_groups(file)


@pytest.mark.parametrize(
    "damage", [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"{}x", b"\x00\x00\x00\x00\x00\x00\x01\x00{"]
)
def test_bytes_that_are_no_payload_are_told_as_such(damage: bytes) -> None:
    with pytest.raises(UserError, match=f"a payload of {len(damage)} bytes cannot be read"):
        decode(damage)
    assert decode(encode({"a": torch.ones(2)}))["a"].tolist() == np.ones(2).tolist()
