"""An archive that lies about its arrays, or is none, ends in one line and takes no memory."""

import io
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fedbench.config.schema import DataConfig
from fedbench.data import data_source
from fedbench.data.images import ArrayImages
from fedbench.errors import UserError

LABELS = np.arange(4)
HUGE = (8_000_000_000_000, 1, 1)  # of bytes: 8 TB


def array(shape: tuple[int, ...], descr: str = "|u1", values: bytes = b"\0" * 100, version: int = 1) -> bytes:
    """An npy file that announces `shape`."""
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    write = np.lib.format.write_array_header_1_0 if version == 1 else np.lib.format.write_array_header_2_0
    write(file, header)
    return file.getvalue() + values


def plain(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def pack(path: Path, compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    content = {"images": plain(np.zeros((4, 5, 5), np.uint8)), "labels": plain(LABELS)} | members
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(f"{name}.npy", data)
    return path


def load(path: Path) -> torch.Tensor:
    part = data_source(data := DataConfig(name="npz", path=str(path))).load(data, 5).train
    assert not isinstance(part.images, torch.Tensor)
    return torch.cat(list(part.images.read(torch.arange(len(part.images)), 5, 1)))


def refusal(path: Path) -> str:
    """The one line of the error."""
    with pytest.raises(UserError) as error:
        load(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_honest_archive_is_read_in_every_way_numpy_writes_one(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 5), dtype=np.uint8)
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        found = load(pack(tmp_path / "a.npz", compression, images=plain(images)))
        assert found[:, 0].tolist() == images.tolist()
    later = array((4, 5, 5), values=images.tobytes(), version=2)
    assert load(pack(tmp_path / "b.npz", images=later))[:, 0].tolist() == images.tolist()


def test_zeros_compressed_as_far_as_they_go_are_read(tmp_path):
    images = np.zeros((400, 100, 100), np.uint8)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=images, labels=np.arange(400) % 2)
    assert images.nbytes / path.stat().st_size > 900
    assert len(load(path)) == 400


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("images", array(HUGE), r"`images` is uint8 (8000000000000, 1, 1); allowed: a shape whose values are in"),
        ("labels", array(HUGE[:1], "<i8"), "`labels` is int64 (8000000000000,); allowed: a shape whose values"),
        ("images", array((2**62, 2**62, 4)), "allowed: a shape whose values are in the file"),
        ("images", array((-1, 5, 5)), "`images` is uint8 (-1, 5, 5); allowed"),
        ("labels", array((-4,), "<i8"), "`labels` is int64 (-4,); allowed"),
        ("images", array((4, -5, -5)), "`images` is uint8 (4, -5, -5); allowed"),
        ("images", array(()), "`images` is uint8 (); allowed: uint8 (N, H, W)"),
        ("images", array((1, 10**4, 10**4), values=b"\0" * 10**8), "89,478,485 pixels an image at most"),
        ("images", b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + b"x" * 60_000, "not a .npz file of plain"),
        ("images", b"\x93NUMPY\x09\x00\x00\x00", "not a .npz file of plain arrays"),
        ("images", b"", "not a .npz file of plain arrays"),
        ("images", array((4, 5, 5), "<nonsense"), "not a .npz file of plain arrays"),
    ],
)
def test_an_array_that_announces_what_it_does_not_hold_is_refused(tmp_path, name, content, message):
    assert message in refusal(pack(tmp_path / "a.npz", zipfile.ZIP_DEFLATED, **{name: content}))


@pytest.mark.parametrize(("name", "shape"), [("images", (3_000_000_000, 1, 1)), ("labels", (3_000_000_000,))])
def test_a_table_of_contents_that_agrees_with_the_lie_is_refused_too(tmp_path, name, shape):
    path = pack(tmp_path / "a.npz", **{name: array(shape)})
    content, entry = bytearray(path.read_bytes()), f"{name}.npy".encode()
    sizes = content.rindex(entry) - 26  # of the entry in the table: compressed, and as it is
    assert struct.unpack_from("<II", content, sizes) == (228, 228)
    struct.pack_into("<II", content, sizes, 3_000_000_128, 3_000_000_128)
    path.write_bytes(content)
    assert "allowed: a shape whose values are in the file" in refusal(path)


def test_more_images_than_labels_fit_into_memory_are_refused(tmp_path):
    shape = (60_000_000, 1, 1)
    path = pack(tmp_path / "a.npz", zipfile.ZIP_DEFLATED, images=array(shape, values=bytes(60_000_000)))
    assert "50,000,000 images at most" in refusal(path)


def test_labels_are_compared_with_the_images_before_they_are_unpacked(tmp_path, monkeypatch):
    path = pack(tmp_path / "a.npz", zipfile.ZIP_DEFLATED, labels=array((10**7,), "<i8", values=bytes(8 * 10**7)))
    monkeypatch.setattr("fedbench.data.archive.read_array", None)
    assert "allowed: as many as `images`: 4" in refusal(path)


def test_images_in_fortran_order_which_are_read_whole_have_a_limit(tmp_path, monkeypatch):
    path = pack(tmp_path / "a.npz", images=plain(np.asfortranarray(np.zeros((4, 5, 5), np.uint8))))
    assert len(load(path)) == 4
    monkeypatch.setattr("fedbench.data.archive.MAX_WHOLE", 99)
    assert "allowed: 99 bytes in Fortran order; save it in C order" in refusal(path)


def test_a_pipe_or_a_device_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    for path in (tmp_path / "a.npz", Path("/dev/zero")):
        assert "no file but a device or a pipe" in refusal(path)


def test_large_images_are_made_few_at_a_time_too(tmp_path, monkeypatch):
    monkeypatch.setattr("fedbench.data.images.CHUNK", 2 * 100 * 100)
    archive = data_source(data := DataConfig(name="npz", path=str(pack(tmp_path / "a.npz")))).load(data, 5)
    for images in (archive.train.images, ArrayImages(np.zeros((4, 1, 5, 5), np.uint8))):
        assert [len(batch) for batch in images.read(torch.arange(4), 100, 1)] == [2, 2]


def test_a_refusal_takes_no_memory(tmp_path):
    path = pack(tmp_path / "a.npz", zipfile.ZIP_DEFLATED, labels=array(HUGE[:1], "<i8"))
    code = f"""
import resource
from fedbench.config.schema import DataConfig
from fedbench.data import data_source
from fedbench.data.images import ArrayImages
from fedbench.errors import UserError
data = DataConfig(name="npz", path={str(path)!r})
source = data_source(data)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    source.load(data, 5)
except UserError:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20


def flag_as_encrypted(content: bytearray) -> None:
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1


def name_an_unknown_method(content: bytearray) -> None:
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        content[content.index(signature) + offset] = 77


def cut_in_half(content: bytearray) -> None:
    del content[len(content) // 2 :]


@pytest.mark.parametrize("damage", [flag_as_encrypted, name_an_unknown_method, cut_in_half])
def test_an_odd_zip_is_no_archive(tmp_path, damage):
    path = pack(tmp_path / "a.npz")
    content = bytearray(path.read_bytes())
    damage(content)
    path.write_bytes(content)
    assert "not a .npz file of plain arrays" in refusal(path)


def test_a_folder_and_a_member_without_its_ending_are_no_archive(tmp_path):
    assert "Is a directory" in refusal(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images", plain(np.zeros((4, 5, 5), np.uint8)))
        archive.writestr("labels.npy", plain(LABELS))
    assert "not a .npz file of plain arrays" in refusal(tmp_path / "a.npz")


def test_every_damage_of_one_byte_ends_in_one_line_or_in_images(tmp_path):
    path = pack(tmp_path / "a.npz", zipfile.ZIP_DEFLATED)
    whole, told = path.read_bytes(), []
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            assert load(path).shape[1:] == (1, 5, 5)
        except UserError as error:
            told.append(str(error))
    assert len(told) > 50
    assert not [text for text in told if "\n" in text]


def test_large_images_are_read_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("fedbench.data.images.CHUNK", 60)
    data = DataConfig(name="npz", path=str(pack(tmp_path / "a.npz")))
    images = data_source(data).load(data, 5).train.images
    assert [len(batch) for batch in images.read(torch.arange(4), 5, 1)] == [2, 2]


def test_memory_that_runs_out_is_a_sentence(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 8 TiB")

    monkeypatch.setattr(np, "load", full)
    told = refusal(pack(tmp_path / "a.npz"))
    assert "its arrays need more memory than there is (Unable to allocate 8 TiB)" in told
