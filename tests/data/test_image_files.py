"""What becomes of image files: kinds of pixels, orientation, and those that cannot be read."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from exhaustive import exhaustive
from PIL import Image

from fedbench.config.schema import DataConfig, EncoderConfig
from fedbench.data import Dataset, load_dataset, store
from fedbench.data.dataset import _load
from fedbench.data.images import MAX_PIXELS, BrokenImagesError, FileImages
from fedbench.errors import UserError

GREY = 180


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _load.cache_clear()
    return tmp_path / "cache" / "fedbench"


def read(*files: Path, channels: int = 3) -> torch.Tensor:
    """Of 4 x 4 pixels, int (N, C, 4, 4)."""
    return torch.cat(list(FileImages(files).read(torch.arange(len(files)), 4, channels))).int()


@pytest.mark.parametrize("suffix", ["tif", "tiff", "png", "bmp"])
def test_pixels_of_every_lossless_format_are_exact(tmp_path, suffix):
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels_HWC).save(tmp_path / f"a.{suffix}")
    assert read(tmp_path / f"a.{suffix}")[0].tolist() == pixels_HWC.transpose(2, 0, 1).tolist()


def test_an_image_that_announces_more_than_its_file_can_hold_takes_no_memory(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.bmp")
    content = bytearray((tmp_path / "a.bmp").read_bytes())
    content[18:26] = (9000).to_bytes(4, "little") * 2
    (tmp_path / "a.bmp").write_bytes(content)
    with pytest.raises(BrokenImagesError, match=r"it announces 9000 x 9000 pixels; its 1,142 bytes hold at most"):
        read(tmp_path / "a.bmp")
    Image.new("1", (9000, 9000)).save(tmp_path / "white.png")
    assert read(tmp_path / "white.png").shape == (1, 3, 4, 4)


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_of_16_bits_the_upper_8_are_kept(tmp_path, suffix):
    Image.fromarray(np.array([[0, 255, 256, 65535]] * 4, np.uint16)).save(tmp_path / f"deep.{suffix}")
    assert read(tmp_path / f"deep.{suffix}", channels=1)[0, 0, 0].tolist() == [0, 0, 1, 255]


def test_what_is_transparent_is_white_and_what_is_half_so_is_between(tmp_path):
    pixels_HWC = np.zeros((4, 4, 4), np.uint8)
    pixels_HWC[..., 3] = [0, 51, 255, 255]
    Image.fromarray(pixels_HWC, "RGBA").save(tmp_path / "a.png")
    assert read(tmp_path / "a.png")[0, :, 0].tolist() == [[255, 204, 0, 0]] * 3
    assert read(tmp_path / "a.png", channels=1)[0, 0, 0].tolist() == [255, 204, 0, 0]


def test_a_palette_becomes_its_colours_and_its_transparent_one_white(tmp_path):
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([9, 9, 9, 10, 200, 30])
    picture.putpixel((0, 0), 0)
    picture.save(tmp_path / "plain.png")
    picture.save(tmp_path / "clear.png", transparency=0)
    plain, clear = read(tmp_path / "plain.png", tmp_path / "clear.png")
    assert plain[:, 1, 1].tolist() == clear[:, 1, 1].tolist() == [10, 200, 30]
    assert (plain[:, 0, 0].tolist(), clear[:, 0, 0].tolist()) == ([9] * 3, [255] * 3)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_inks_become_colours(tmp_path, suffix):
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / f"a.{suffix}")  # magenta and yellow are red
    assert (read(tmp_path / f"a.{suffix}")[0, :, 0, 0] - torch.tensor([255, 0, 0])).abs().max() <= 3


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (3, 3)), (6, (0, 3)), (8, (3, 0))])
def test_an_image_is_turned_upright(tmp_path, suffix, orientation, corner):
    picture = Image.new("RGB", (4, 4))
    picture.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / f"a.{suffix}", exif=exif, lossless=True)
    found_HW = read(tmp_path / f"a.{suffix}")[0, 0]
    assert divmod(int(found_HW.argmax()), 4) == corner


def test_a_damaged_exif_header_costs_no_image(tmp_path):
    Image.new("L", (4, 4), GREY).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00nonsense")
    assert read(tmp_path / "a.jpg").unique().tolist() == [GREY]


def test_a_second_page_is_not_read(tmp_path):
    first, second = Image.new("L", (4, 4), GREY), Image.new("L", (4, 4), 3)
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    assert read(tmp_path / "a.tif").unique().tolist() == [GREY]


def test_a_decoder_of_another_format_never_sees_a_file(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\nshowpage\n%%EOF\n")
    Image.new("L", (4, 4)).save(tmp_path / "b.png", format="GIF")
    with Image.open(tmp_path / "a.png") as opened:  # PIL alone would hand it to Ghostscript
        assert opened.format == "EPS"
    with pytest.raises(BrokenImagesError) as error:
        read(tmp_path / "a.png", tmp_path / "b.png")
    assert set(error.value.reasons.values()) == {"no whole image in the format JPEG, PNG, BMP, WEBP or TIFF"}


def test_a_photograph_with_a_second_picture_in_it_is_a_photograph(tmp_path):
    first, second = Image.new("RGB", (8, 8), (GREY,) * 3), Image.new("RGB", (8, 8))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert (read(tmp_path / "a.jpg") - GREY).abs().max() <= 1


def announce(file: Path, width: int, height: int) -> None:
    """A bitmap of one pixel that says it is larger."""
    Image.new("L", (1, 1)).save(file)
    content = bytearray(file.read_bytes())
    content[18:26] = np.array([width, height], "<i4").tobytes()
    file.write_bytes(content)


@pytest.mark.parametrize(
    "size", [(9460, 9460), exhaustive((20_000, 20_000))], ids=["of which PIL warns", "that PIL refuses"]
)
def test_an_image_that_announces_too_many_pixels_is_refused_before_there_is_memory_for_them(tmp_path, size):
    announce(tmp_path / "a.bmp", *size)
    assert size[0] * size[1] > MAX_PIXELS
    code = f"""
import resource
from pathlib import Path
import torch
from fedbench.data.images import BrokenImagesError, FileImages
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    list(FileImages([Path({str(tmp_path / "a.bmp")!r})]).read(torch.arange(1), 4, 3))
except BrokenImagesError as error:
    print(error.reasons[0])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, "MiB")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    why, memory, _ = done.stdout.rsplit(maxsplit=2)
    assert f"{size[0] * size[1]}" in why or f"it announces {size[0]} x {size[1]} pixels" in why
    assert int(memory) < 40
    assert done.stderr == ""


def test_memory_that_runs_out_is_a_sentence_and_no_broken_image(tmp_path, monkeypatch):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", full)
    with pytest.raises(UserError, match=r"a\.png needs more memory than there is") as error:
        read(tmp_path / "a.png")
    assert not isinstance(error.value, BrokenImagesError)


def photographs(folder: Path, count: int, broken: set[int]) -> DataConfig:
    """Two classes in turn; image n has the grey value n."""
    for number in range(count):
        file = folder / "ab"[number % 2] / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(file)
        if number in broken:
            file.write_bytes(file.read_bytes()[:40])
    return DataConfig(name="image_folder", path=str(folder))


def load(data: DataConfig, **changes: object) -> Dataset:
    return load_dataset(data.model_copy(update=changes), EncoderConfig())


def greys(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_all_broken_files_of_all_parts_are_named_at_once(tmp_path):
    data = photographs(tmp_path / "set" / "train", 8, {2, 5})
    photographs(tmp_path / "set" / "test", 4, {1})
    with pytest.raises(UserError, match=r"set: 3 of 12 images cannot be read:\n") as error:
        load(data, path=str(tmp_path / "set"))
    lines = str(error.value).splitlines()
    named = [str(tmp_path / "set" / name) for name in ("train/a/002.png", "train/b/005.png", "test/b/001.png")]
    assert [line.split(":")[0].strip() for line in lines[1:-1]] == named
    assert "leave them out: data.skip_broken=true" in lines[-1]


def test_of_very_many_broken_files_twenty_are_named_and_the_others_counted(tmp_path):
    with pytest.raises(UserError, match=r"30 of 60 images cannot be read") as error:
        load(photographs(tmp_path / "set", 60, set(range(0, 60, 2))))
    lines = str(error.value).splitlines()
    assert len([line for line in lines if ".png: " in line]) == 20
    assert lines[-2] == "  ... and 10 more"


def test_what_cannot_be_read_is_left_out_told_and_counted_and_labels_and_names_stay_with_their_images(
    tmp_path, capsys
):
    data = photographs(tmp_path / "set", 40, {3, 10, 20})
    found = load(data, skip_broken=True)
    assert found.left_out == 3
    assert found.facts == {"name": "set", "train_images": len(found.train_labels), "left_out": 3}
    told = capsys.readouterr().err
    assert "3 of 40 images cannot be read" in told
    assert "they are left out (data.skip_broken=true)" in told
    numbers = greys(found.train_images)
    assert sorted(numbers + greys(found.test_images)) == sorted(set(range(40)) - {3, 10, 20})
    assert found.train_labels.tolist() == [number % 2 for number in numbers]
    assert found.train_names == [f"{'ab'[number % 2]}/{number:03}.png" for number in numbers]


def test_an_image_that_is_left_out_moves_no_other_to_the_test_part(tmp_path):
    whole, some = photographs(tmp_path / "whole", 40, set()), photographs(tmp_path / "some", 40, {3, 10, 20})
    before, after = load(whole), load(some, skip_broken=True)
    assert set(greys(after.test_images)) == set(greys(before.test_images)) - {3, 10, 20}


def test_leaving_nothing_out_changes_no_bit(tmp_path):
    data = photographs(tmp_path / "set", 40, set())
    assert load(data, skip_broken=True).content_hash == load(data).content_hash


def test_what_was_decoded_once_is_not_decoded_again_to_leave_broken_files_out(tmp_path, monkeypatch, cache):
    data = photographs(tmp_path / "set", 40, {3})
    with pytest.raises(UserError, match="1 of 40"):
        load(data)
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(UserError, match=r"1 of 40 images .*\n  .*b/003\.png: "):
        load(data)
    assert load(data, skip_broken=True).left_out == 1
    assert len(list(cache.glob("*.json"))) == len(list(cache.glob("*.npy"))) == 2


@pytest.mark.parametrize("lost", ["*.json", "*.npy"])
def test_decoded_images_whose_list_of_broken_ones_was_lost_are_decoded_anew(tmp_path, cache, lost):
    data = photographs(tmp_path / "set", 40, {3})
    before = load(data, skip_broken=True).content_hash
    for file in cache.glob(lost):
        file.unlink()
    _load.cache_clear()
    after = load(data, skip_broken=True)
    assert (after.content_hash, after.left_out) == (before, 1)


def test_a_file_that_cannot_be_opened_is_one_of_the_broken_ones_until_it_can(tmp_path):
    here, gone = tmp_path / "here.png", tmp_path / "gone.png"
    Image.new("L", (4, 4), GREY).save(here)
    images = FileImages([gone, here])
    found = store.decoded(images, torch.arange(2), 4, 1, "two")
    assert (found.images.unique().tolist(), found.broken) == ([GREY], {0: "No such file or directory"})
    Image.new("L", (4, 4), 3).save(gone)
    found = store.decoded(images, torch.arange(2), 4, 1, "two")
    assert (found.images[:, 0, 0, 0].tolist(), found.broken) == ([3, GREY], {})


def test_a_part_or_a_class_of_which_nothing_is_left_is_an_error(tmp_path):
    data = photographs(tmp_path / "set" / "train", 8, set())
    photographs(tmp_path / "set" / "test", 4, {0, 1, 2, 3})
    with pytest.raises(UserError, match="without them nothing is left to learn from, or to score"):
        load(data, path=str(tmp_path / "set"), skip_broken=True)
    photographs(tmp_path / "other" / "train", 8, {1, 3, 5, 7})
    photographs(tmp_path / "other" / "test", 4, set())
    with pytest.raises(UserError, match="class 'b' has no image to learn from"):
        load(data, path=str(tmp_path / "other"), skip_broken=True)


def test_a_set_of_which_nothing_can_be_read_is_empty_in_the_store_too(tmp_path):
    data = photographs(tmp_path / "set", 4, {0, 1, 2, 3})
    files = sorted(Path(str(data.path)).rglob("*.png"))
    found = store.decoded(FileImages(files), torch.arange(4), 8, 3, "set")
    assert (found.images.shape, sorted(found.broken)) == ((0, 3, 8, 8), [0, 1, 2, 3])
