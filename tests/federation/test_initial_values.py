"""All strategies of a seed begin with the same values."""

from collections.abc import Callable

import pytest
import torch

from fedbench.config import Config
from fedbench.conformance.witness import Witness
from fedbench.evaluation import untrained_encoder
from fedbench.federation.experiment import prepare

Tiny = Callable[..., Config]


@pytest.mark.parametrize("strategy", ["fedssl", "prog_fedssl", "lw_fedssl"])
def test_every_block_is_first_sent_as_the_floor_has_it(tiny: Tiny, strategy: str) -> None:
    config = tiny(strategy=strategy)
    floor = {f"encoder.{key}": value for key, value in untrained_encoder(config).state_dict().items()}
    first: dict[str, torch.Tensor] = {}
    for visit in Witness(prepare(config)).visits:
        for key, value in visit.payload.items():
            first.setdefault(key, value)
    assert {key for key in first if key.startswith("encoder.")} == floor.keys()
    grown = [key for key in floor if ".blocks." in key]
    assert all(torch.equal(first[key], floor[key]) for key in grown)


def test_the_heads_begin_alike_under_every_strategy(tiny: Tiny) -> None:
    def heads(strategy: str) -> dict[str, torch.Tensor]:
        visit = Witness(prepare(tiny(strategy=strategy))).visits[0]
        return {key: value for key, value in visit.payload.items() if not key.startswith("encoder.")}

    whole, grown = heads("fedssl"), heads("lw_fedssl")
    assert whole.keys() == grown.keys() != set()
    assert all(torch.equal(whole[key], grown[key]) for key in whole)
