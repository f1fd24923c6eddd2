"""A file of images reaches the decoders of the allowed formats and no other, whatever it is called."""

import ast
import io
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedbench.config import Config
from fedbench.data import load_dataset
from fedbench.data.folders import SUFFIXES
from fedbench.data.images import FORMATS, BrokenImagesError, FileImages
from fedbench.errors import UserError

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n(%pipe%touch owned) (w) file\nshowpage\n%%EOF\n"
Image.init()
ROOT = Path(__file__).parents[2]
LOADERS = {"imread", "read_image", "decode_image", "default_loader", "pil_loader", "ImageFolder", "ImageReadMode"}
OTHERS = sorted(Image.OPEN.keys() - FORMATS)


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The decoders of other formats that were handed a file, and the programs that were started."""
    seen: list[str] = []

    def watch(name: str) -> tuple[Callable[..., Any], Callable[..., bool]]:
        def opened(*_: object) -> None:
            seen.append(name)
            raise SyntaxError

        return opened, lambda _: True  # it would take every file

    for name in OTHERS:
        monkeypatch.setitem(Image.OPEN, name, watch(name))
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **_: seen.append(str(words)))
    return seen


def files_of_other_formats() -> dict[str, bytes]:
    """Name of a format -> a small image in it: each that PIL writes and is not allowed, and PostScript."""
    found = {"PostScript": POSTSCRIPT, "a header alone": b"\x00" * 64}
    for name in sorted(Image.SAVE.keys() - {*FORMATS, "MPO"}):  # an MPO is a JPEG
        file = io.BytesIO()
        try:
            Image.new("L", (8, 8), 7).save(file, format=name)
        except (OSError, ValueError, KeyError, AttributeError):  # a library is missing, or no grey there
            continue
        found[name] = file.getvalue()
    return found


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:PIL")
def test_no_file_is_handed_to_a_decoder_that_is_not_allowed(
    tmp_path: Path, suffix: str, reached: list[str]
) -> None:
    contents = files_of_other_formats()
    files = [tmp_path / f"{number}{suffix}" for number in range(len(contents))]
    for file, content in zip(files, contents.values(), strict=True):
        file.write_bytes(content)
    with pytest.raises(BrokenImagesError) as error:
        list(FileImages(files).read(torch.arange(len(files)), 4, 3))
    assert len(contents) > 10
    assert reached == []
    assert dict.fromkeys(error.value.reasons.values()) == {
        "no whole image in the format JPEG, PNG, BMP, WEBP or TIFF": None
    }


def test_without_the_list_of_formats_another_decoder_would_be_reached(tmp_path: Path, reached: list[str]) -> None:
    (tmp_path / "a.png").write_bytes(POSTSCRIPT)
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(tmp_path / "a.png")
    assert "EPS" in reached


def test_a_folder_of_images_hands_none_to_another_decoder(
    tmp_path: Path, tiny: Callable[..., Config], reached: list[str]
) -> None:
    for number, kind in enumerate(("cat", "dog")):
        (tmp_path / kind).mkdir()
        for one in range(4):
            pixels = np.full((8, 8, 3), 40 * number + one, np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{one}.png")
        for suffix in SUFFIXES:
            (tmp_path / kind / f"evil{suffix}").write_bytes(POSTSCRIPT)
    config = tiny({"data": {"name": "image_folder", "path": str(tmp_path), "num_train": None}})
    with pytest.raises(UserError, match="no whole image in the format"):
        load_dataset(config.data, config.encoder)
    assert reached == []


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def test_images_are_opened_in_one_place_with_the_list_of_formats_and_by_no_other_library() -> None:
    opened, loaders = [], []
    for file in [path for folder in ("fedbench", "methods") for path in (ROOT / folder).rglob("*.py")]:
        for call in calls(ast.parse(file.read_text(encoding="utf-8"))):
            name = ast.unparse(call.func)
            if name.endswith("Image.open"):
                opened.append((file.name, {word.arg: ast.unparse(word.value) for word in call.keywords}))
            if name.split(".")[-1] in LOADERS:
                loaders.append((file.name, name))
    assert opened == [("images.py", {"formats": "FORMATS"})]
    assert loaders == []
