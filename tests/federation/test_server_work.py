"""What several mechanisms do on the server: whose images they have, what they may change, when, what it costs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fedbench
from fedbench.config import Config
from fedbench.conformance.witness import Witness
from fedbench.errors import UserError
from fedbench.federation import Mechanism, ServerTraining
from fedbench.federation.experiment import prepare
from fedbench.ssl import SSLMethod

Tiny = Callable[..., Config]

TRAINS = """
from dataclasses import dataclass
from fedbench.federation import Mechanism


@dataclass(frozen=True)
class TrainsToo(Mechanism):
    share: float = 0.1

    def auxiliary(self):
        return self.share

    def server_step(self, server):
        server.train(1)
"""


@pytest.fixture
def trains_too(tmp_path: Path) -> str:
    """The file of a second mechanism that trains on the server."""
    file = tmp_path / "trains_too.py"
    file.write_text(TRAINS)
    return str(file)


def test_each_mechanism_has_the_images_that_it_asked_for(tiny: Tiny, trains_too: str) -> None:
    both = prepare(tiny(strategy={"name": "fedssl", "calibration": {"share": 0.2}, trains_too: {"share": 0.4}}))
    alone = prepare(tiny(strategy={"name": "fedssl", "calibration": {"share": 0.2}}))
    assert {name: len(images) for name, images in both.auxiliary.items()} == {"Calibration": 12, "TrainsToo": 24}
    assert torch.equal(both.auxiliary["Calibration"], alone.auxiliary["Calibration"])
    smaller, larger = ({image.numpy().tobytes() for image in both.auxiliary[one]} for one in both.auxiliary)
    assert smaller <= larger
    clients = {image.numpy().tobytes() for one in both.client_indices for image in both.dataset.train_images[one]}
    assert sum(map(len, both.client_indices)) == 36  # what the larger share leaves
    assert not larger & clients


def test_a_second_data_set_for_one_and_a_share_for_the_other(tiny: Tiny, trains_too: str) -> None:
    data = {"name": "digits", "num_train": 16}
    strategy = {"name": "fedssl", "calibration": {"data": data}, trains_too: {"share": 0.1}}
    experiment = prepare(tiny(strategy=strategy))
    assert {name: len(images) for name, images in experiment.auxiliary.items()} == {
        "Calibration": 16,
        "TrainsToo": 6,
    }
    assert sum(map(len, experiment.client_indices)) == 54


@pytest.mark.costs
def test_the_work_of_both_is_predicted(tiny: Tiny, trains_too: str) -> None:
    strategy = {"name": "lw_fedssl", "calibration": {"share": 0.2}, trains_too: {"share": 0.4}}
    config = tiny(strategy=strategy)
    records, predicted = Witness(prepare(config)).records, fedbench.profile(config)
    assert [one.server_steps for one in records] == [5] * 6  # 12 and 24 images in batches of 8
    assert sum(one.server_flops for one in records) == predicted.server_flops
    assert sum(one.server_steps for one in records) == sum(stage.server_steps for stage in predicted.stages)


def test_two_that_train_draw_unlike(tiny: Tiny, trains_too: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    fit = fedbench.federation.server_training.fit

    def noted(*arguments: Any) -> int:
        keys.append(arguments[5:])
        return fit(*arguments)

    monkeypatch.setattr("fedbench.federation.server_training.fit", noted)
    config = tiny(strategy={"name": "fedssl", "calibration": True, trains_too: True}, federation={"rounds": 1})
    Witness(prepare(config))
    assert keys == [(0, "server"), (0, "server", 1)]


@dataclass(frozen=True)
class Edits(Mechanism):
    """Adds one to the norm, and says that it edits some group."""

    group: str = "norm"

    def end_stage(self, server: ServerTraining) -> None:
        server.edit(frozenset({self.group}), self.add)

    def add(self, model: SSLMethod, images: Tensor) -> None:
        assert images.shape == (0, 1, 8, 8)
        model.encoder.norm.bias.add_(1)


def edited(tiny: Tiny, tmp_path: Path, group: str, strategy: str) -> Witness:
    file = tmp_path / "edits.py"
    file.write_text("from test_server_work import Edits\n\n\nclass Mine(Edits):\n    pass\n")
    return Witness(prepare(tiny(strategy={"name": strategy, str(file): {"group": group}})))


def test_an_edit_comes_once_a_stage_behind_its_last_round(tiny: Tiny, tmp_path: Path) -> None:
    witness = edited(tiny, tmp_path, "norm", "lw_fedssl")
    plain = Witness(prepare(tiny(strategy="lw_fedssl")))
    key = "encoder.norm.bias"
    assert torch.equal(witness.final[0][key], plain.final[0][key])
    assert torch.equal(witness.final[1][key], plain.final[1][key] + 1)  # two rounds a stage
    assert not torch.equal(witness.final[-1][key], plain.final[-1][key])


def test_an_edit_of_another_group_than_it_names_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"edit changed 'norm'; allowed: the groups that it names, \['heads'\]"):
        edited(tiny, tmp_path, "heads", "fedssl")
