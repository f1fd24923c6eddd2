"""Mine is built as its keys say, and holds what every encoder must, under strategies that grow it too."""

from pathlib import Path

from fedbench.config import load_config
from fedbench.conformance.report import check_plugin
from fedbench.encoders import outline

FILE = str(Path(__file__).with_name("mine.py"))


def test_it_has_as_many_blocks_as_its_key_says() -> None:
    config = load_config({"encoder": {"name": FILE, "layers": 5}})
    assert outline(config.encoder).num_blocks == 5


def test_it_does_what_is_planned_and_every_byte_is_counted() -> None:
    assert [finding for _, _, finding in check_plugin(FILE, {"width": 8}) if finding] == []
