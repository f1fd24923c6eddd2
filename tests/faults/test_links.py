"""A link that somebody planted in an output folder leads nothing of ours to a file elsewhere."""

import os
from pathlib import Path
from socket import gethostname

import numpy as np
import pytest
import torch

from fedbench.data import store
from fedbench.data.images import ArrayImages
from fedbench.files import append, exclusive, write_atomically
from fedbench.tracking.client_rows import SCHEMA
from fedbench.tracking.run_directory import ERROR, GROWING, MANIFEST, SUMMARY, RunDirectory


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Somebody's file, which stays as it is."""
    path = tmp_path / "elsewhere.txt"
    path.write_text("precious")
    return path


def test_what_replaces_a_file_replaces_a_link_to_it(tmp_path: Path, elsewhere: Path) -> None:
    (tmp_path / "summary.json").symlink_to(elsewhere)
    (tmp_path / f".summary.json.{gethostname()}.{os.getpid()}.part").symlink_to(elsewhere)
    write_atomically(tmp_path / "summary.json", b"{}")
    assert (tmp_path / "summary.json").read_text() == "{}"
    assert not (tmp_path / "summary.json").is_symlink()
    assert elsewhere.read_text() == "precious"


def test_what_is_added_to_a_link_goes_nowhere(tmp_path: Path, elsewhere: Path) -> None:
    (tmp_path / "rounds.jsonl").symlink_to(elsewhere)
    with pytest.raises(OSError, match=r"rounds\.jsonl"):
        append(tmp_path / "rounds.jsonl", b"{}")
    assert elsewhere.read_text() == "precious"


def test_a_lock_that_is_a_link_makes_no_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to(tmp_path / "made")
    with pytest.raises(OSError, match=r"\.lock"), exclusive(tmp_path):
        pass
    assert not (tmp_path / "made").exists()


def test_a_run_writes_none_of_its_files_through_a_link(tmp_path: Path, elsewhere: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    for name in (MANIFEST, *GROWING, SUMMARY, ERROR, "encoder.safetensors"):
        (run.path / name).symlink_to(elsewhere)
    run.start({"cell_hash": "a"})
    run.append_clients({name: [] for name in SCHEMA.names})
    run.append_round({"round": 0})
    run.append_ledger(["client"], [[0]])
    run.finish({"top1": 0.5}, {"w": torch.ones(1)})
    run.fail("stopped")
    assert elsewhere.read_text() == "precious"
    assert not [path for path in run.path.iterdir() if path.is_symlink()]


def test_decoded_images_are_kept_in_no_link(tmp_path: Path, elsewhere: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images, rows = ArrayImages(np.zeros((2, 1, 4, 4), np.uint8)), torch.arange(2)
    key = store._key(images, rows, (2, 1, 4, 4))
    (tmp_path / "cache" / "fedbench").mkdir(parents=True)
    (tmp_path / "cache" / "fedbench" / f".{key}.npy.part").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="decoded images cannot be kept in"):
        store.decoded(images, rows, 4, 1, "x")
    assert elsewhere.read_text() == "precious"


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"\x80\x04.", b"\x93NUMPY\x01\x00\x02\x00{}", b"\x93NUMPY\x09\x00"],
)
def test_kept_images_that_are_damaged_are_decoded_again(tmp_path: Path, monkeypatch, content: bytes) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images, rows = ArrayImages(np.full((2, 1, 4, 4), 7, np.uint8)), torch.arange(2)
    store.decoded(images, rows, 4, 1, "x")
    [file] = (tmp_path / "cache" / "fedbench").glob("*.npy")
    wrong_type, wrong_shape = tmp_path / "type.npy", tmp_path / "shape.npy"
    np.save(wrong_type, np.zeros((2, 1, 4, 4)))
    np.save(wrong_shape, np.zeros((2, 9), np.uint8))
    for damaged in (content, wrong_type.read_bytes(), wrong_shape.read_bytes()):
        file.write_bytes(damaged)
        assert store.decoded(images, rows, 4, 1, "x").images.flatten().tolist() == [7] * 32
    file.with_suffix(".json").write_text("[1]")
    assert len(store.decoded(images, rows, 4, 1, "x").images) == 2
