"""Worker processes that share a second device: the CPU's results, and no more of them than it has room for."""

from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest
import torch
from small import SMALL
from tiny_config import TINY

from fedbench.config import Config, load_config
from fedbench.errors import UserError
from fedbench.federation.experiment import prepare
from fedbench.federation.federation import Federation
from fedbench.running.cell import run_cell
from fedbench.running.needs import GIB, on_device

PLUGIN = '''
"""FedSSL, in a file that brings the stand-in along: a worker process has no tests' fixtures."""

import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedbench.methods.federation.fedssl import FedSSL

sys.path.append({folder!r})
import stand_in

if not torch.accelerator.is_available():
    kept = [stand_in.switched_on(), sdpa_kernel(SDPBackend.MATH)]
    for one in kept:
        one.__enter__()


class OnStandIn(FedSSL):
    def begin_visit(self, visit):
        devices = {{value.device.type for value in visit.trained.values()}}
        assert devices == {{{device!r}}}, devices
'''


def configure(tmp_path: Path, device: str, **keys: object) -> Config:
    """The small federation, whose clients see that they are trained on `device`."""
    file = tmp_path / f"on_{device}.py"
    file.write_text(PLUGIN.format(folder=str(Path(__file__).parent), device=device))
    return load_config(TINY, SMALL, {"strategy": str(file)}, keys)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("second")
def test_workers_on_the_device_end_with_the_bits_of_one_process_on_the_cpu(tmp_path: Path) -> None:
    states = []
    for config in (
        configure(tmp_path, "standin", engine="processes", workers=2),
        configure(tmp_path, "cpu", accelerator="cpu"),
    ):
        with closing(Federation(prepare(config), tmp_path / "clients")) as federation:
            assert len(list(federation.rounds())) == 2
            states.append(federation.server.state)
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_workers_for_which_the_device_has_no_room_are_refused(
    second: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    experiment = prepare(load_config(TINY, SMALL, {"engine": "processes", "workers": 3}))
    assert GIB < on_device(experiment) < 1.01 * GIB  # small models: the GiB that nobody predicts
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda _: (0, int(3.5 * GIB)))
    words = r"workers=3 on accelerator=standin: 4 processes, .* allowed: workers=2 or fewer"
    with pytest.raises(UserError, match=words):
        run_cell(experiment, tmp_path)
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda _: (0, GIB))
    with pytest.raises(UserError, match=r"1\.0; allowed: engine=in_process"):
        run_cell(experiment, tmp_path)
