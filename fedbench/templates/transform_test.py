"""Mine is nothing where it should be nothing, and holds what every encoder must."""

from pathlib import Path

import torch

from fedbench.config import load_config
from fedbench.conformance.report import check_plugin
from fedbench.encoders import initial_encoder

FILE = str(Path(__file__).with_name("mine.py"))


def test_a_scale_of_one_is_the_encoder_without_it() -> None:
    plain, scaled = (
        initial_encoder(load_config({"encoder": {"transforms": transforms}}).encoder, depth=4, seed=0).eval()
        for transforms in ([], [FILE])
    )
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(plain(images), scaled(images))


def test_it_does_what_is_planned_and_every_byte_is_counted() -> None:
    assert [finding for _, _, finding in check_plugin(FILE, {}) if finding] == []
