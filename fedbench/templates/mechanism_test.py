"""Mine leaves whole what every strategy must keep to, and nothing of it is left at weight 0."""

from pathlib import Path

import fedbench
from fedbench.conformance.report import check_plugin

FILE = str(Path(__file__).with_name("mine.py"))
TINY = {
    "encoder": {"width": 16, "heads": 2, "depth": 2},
    "data": {"name": "digits", "num_train": 60},
    "federation": {"num_clients": 2, "rounds": 2},
    "optimizer": {"batch_size": 8},
    "probe": {"epochs": 2},
    "tracking": {"wandb": "disabled"},
}


def trained(folder: Path, **mechanism: object) -> bytes:
    result = fedbench.run(TINY, out=folder, strategy={"name": "fedssl", **mechanism})
    return (result.path / "encoder.safetensors").read_bytes()


def test_every_strategy_with_it_does_what_it_plans() -> None:
    assert [row for row in check_plugin(FILE, {}) if row[2] is not None] == []


def test_a_weight_of_0_is_the_strategy_without_it_and_another_is_not(tmp_path: Path) -> None:
    without = trained(tmp_path)
    assert trained(tmp_path, **{FILE: {"weight": 0}}) == without
    assert trained(tmp_path, **{FILE: {"weight": 1}}) != without
