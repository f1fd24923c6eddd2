"""Decoded once, kept by content and size, whole or not at all."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedbench.data import store
from fedbench.data.images import ArrayImages, FileImages
from fedbench.errors import UserError

ROWS = torch.tensor([0, 2, 3])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fedbench"


class Counted(ArrayImages):
    """Counts how often it is read."""

    reads = 0

    def read(self, rows, image_size, in_channels):
        self.reads += 1
        yield from super().read(rows, image_size, in_channels)


def noise(seed: int = 0) -> Counted:
    return Counted(np.random.default_rng(seed).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8))


def decode(images: Counted, size: int = 4, channels: int = 3, rows: torch.Tensor = ROWS) -> torch.Tensor:
    return store.decoded(images, rows, size, channels, "noise").images


def test_images_are_decoded_once_and_read_from_the_file_after_it(cache):
    images = noise()
    first, again = decode(images), decode(images)
    assert images.reads == 1
    assert first.tolist() == again.tolist() == images.array[ROWS].tolist()
    assert len(list(cache.glob("*.npy"))) == 1


@pytest.mark.parametrize(
    "change", [{"size": 8}, {"channels": 1}, {"rows": ROWS + 1}], ids=["size", "channels", "rows"]
)
def test_another_size_number_of_channels_or_choice_is_another_file(cache, change):
    decode(noise())
    images = noise()
    decode(images, **change)
    assert images.reads == 1
    assert len(list(cache.glob("*.npy"))) == 2


def test_other_content_of_the_same_files_is_decoded_anew(tmp_path):
    file = tmp_path / "a.png"
    for colour in (1, 200):
        Image.new("L", (4, 4), colour).save(file)
        found = store.decoded(FileImages([file]), torch.tensor([0]), 4, 1, "one")
        assert found.images.unique().tolist() == [colour]


def test_files_converted_by_other_rules_are_decoded_anew(tmp_path, cache, monkeypatch):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    for rules in (b"of today", b"of tomorrow"):
        monkeypatch.setattr("fedbench.data.images.RULES", rules)
        store.decoded(FileImages([tmp_path / "a.png"]), torch.tensor([0]), 4, 1, "one")
    assert len(list(cache.glob("*.npy"))) == 2


def test_a_file_that_was_cut_short_is_written_anew(cache):
    images = noise()
    whole = decode(images).clone()
    (file,) = cache.glob("*.npy")
    for length in (0, 100, 150):
        file.write_bytes(file.read_bytes()[:length])
        assert torch.equal(decode(images), whole)
    assert images.reads == 4


def test_a_decoder_that_fails_leaves_nothing_behind_and_the_next_one_goes_on(cache):
    class Failing(Counted):
        def read(self, rows, image_size, in_channels):
            yield next(super().read(rows[:1], image_size, in_channels))
            raise UserError("image 2 is broken")

    broken = Failing(noise().array)
    with pytest.raises(UserError, match="image 2 is broken"):
        decode(broken)
    assert [file.stat().st_size for file in cache.iterdir()] == [0]
    images = noise()
    assert decode(images).tolist() == images.array[ROWS].tolist()
    assert sorted(file.suffix for file in cache.iterdir()) == [".json", ".npy"]


def test_what_a_killed_process_left_is_overwritten(cache):
    images = noise()
    decode(images)
    (file,) = cache.glob("*.npy")
    file.unlink()
    (cache / f".{file.name}.part").write_bytes(b"half an image")
    assert decode(images).tolist() == images.array[ROWS].tolist()


def test_writing_to_the_images_of_a_run_does_not_change_the_file():
    images = noise()
    decode(images).zero_()
    assert decode(images).tolist() == images.array[ROWS].tolist()


def test_a_disk_that_is_too_small_is_an_error_before_anything_is_decoded(monkeypatch, cache):
    images, usage = noise(), shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(UserError, match=r"0\.0 GB in .*fedbench.*XDG_CACHE_HOME"):
        decode(images)
    assert images.reads == 0


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be kept in .*file/fedbench .*XDG_CACHE_HOME"):
        decode(noise())


def test_decoding_holds_a_few_images_at_a_time_and_not_all_of_them(monkeypatch):
    monkeypatch.setattr("fedbench.data.images.BATCH", 2)
    pieces = [len(batch) for batch in noise().read(torch.arange(5), 4, 3)]
    assert pieces == [2, 2, 1]


def test_a_flipped_bit_in_decoded_images_is_told_and_they_are_decoded_again(cache, capsys, monkeypatch):
    images = ArrayImages(np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8))

    def load():
        monkeypatch.setattr(store, "_checked", set())  # as in another process
        return store.decoded(images, torch.arange(5), 8, 3, "five").images.clone()

    before = load()
    (file,) = cache.glob("*.npy")
    content = bytearray(file.read_bytes())
    content[-7] ^= 4
    file.write_bytes(content)
    assert torch.equal(load(), before)
    assert "is not what was written; the images are decoded again" in capsys.readouterr().err
    assert torch.equal(load(), before)
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what was advised")
def test_nothing_is_read_ahead_of_images_that_will_be_drawn() -> None:
    def flags(images: torch.Tensor) -> list[str]:
        address, here = images.data_ptr(), False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                low, high = (int(end, 16) for end in words[0].split("-"))
                here = low <= address < high
            elif here and words[0] == "VmFlags:":
                return words[1:]
        raise AssertionError("no such mapping")

    images = decode(noise())
    assert "rr" not in flags(images)
    store.will_be_drawn(images)
    assert "rr" in flags(images)
    store.will_be_drawn(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))  # of no file
