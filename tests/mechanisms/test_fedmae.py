"""FedMAE: a client's encoder has one block, whichever stage it is."""

from collections.abc import Callable

import pytest

from fedbench.config import Config
from fedbench.conformance.witness import Witness
from fedbench.encoders.tensor_groups import by_group
from fedbench.errors import UserError
from fedbench.federation.experiment import check, prepare
from fedbench.profiling import profile


def test_every_stage_costs_what_one_block_costs_and_moves_one_block(tiny: Callable[..., Config]) -> None:
    stages = profile(tiny(strategy="fedmae")).stages
    layer_wise = profile(tiny(strategy="lw_fedssl")).stages
    one = layer_wise[0]
    assert stages[0].flops_per_step == one.flops_per_step
    assert stages[0].peak_memory_bytes == one.peak_memory_bytes
    # with the stem frozen, its projection has no gradient: the later stages cost less, and all the same
    assert stages[1].flops_per_step == stages[2].flops_per_step < one.flops_per_step
    assert stages[2].flops_per_step < layer_wise[2].flops_per_step
    assert stages[1].upload_bytes["step"] == stages[2].upload_bytes["step"] < stages[0].upload_bytes["step"]


def test_the_blocks_before_the_newest_are_not_sent_and_end_up_in_the_encoder(tiny: Callable[..., Config]) -> None:
    witness = Witness(prepare(tiny(strategy="fedmae")))
    for visit in witness.visits:
        assert not {f"block_{number}" for number in range(1, visit.stage)} & set(by_group(visit.payload))
    assert {f"block_{number}" for number in (1, 2, 3)} < set(by_group(witness.final[-1]))


def test_blocks_of_several_shapes_are_refused(tiny: Callable[..., Config]) -> None:
    config = tiny(strategy="fedmae", encoder={"name": "resnet18", "depth": 4})
    with pytest.raises(UserError, match=r"strategy=fedmae: blocks of encoder\.name=resnet18 .*allowed: encoders"):
        check(config)
