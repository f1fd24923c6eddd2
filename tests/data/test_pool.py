"""Images that do not fit on the device train the same model."""

from types import SimpleNamespace

import pytest
import torch
from exhaustive import all_but

from fedbench.data.pool import HostImages, place
from fedbench.federation import server_training
from fedbench.federation.engines import in_process
from fedbench.federation.experiment import prepare
from fedbench.federation.federation import Federation

CPU = torch.device("cpu")


def trained(config, folder) -> dict[str, torch.Tensor]:
    federation = Federation(prepare(config), folder)
    list(federation.rounds())
    return federation.server.state


@pytest.mark.parametrize("strategy", all_but("lw_fedssl@v3", ["fedssl", "lw_fedssl@v3"]))
def test_batches_from_main_memory_give_the_same_bits(tiny, tmp_path, monkeypatch, strategy):
    config = tiny({"strategy": strategy})
    whole = trained(config, tmp_path / "whole")
    for module in (in_process, server_training):
        monkeypatch.setattr(module, "place", HostImages)
    batches = trained(config, tmp_path / "batches")
    assert whole.keys() == batches.keys()
    assert all(torch.equal(whole[key], batches[key]) for key in whole)


@pytest.mark.parametrize(("size", "kept"), [(500, False), (501, True)])
def test_images_stay_in_main_memory_if_they_need_more_than_half_of_what_a_gpu_has_free(monkeypatch, size, kept):
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda device: (1000, 9000))
    copied = SimpleNamespace(nbytes=size, to=lambda device: "on the device")
    assert isinstance(place(copied, torch.device("cuda")), HostImages) == kept


def test_on_the_cpu_images_stay_where_they_are_mapped():
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    assert place(images, CPU) is images
