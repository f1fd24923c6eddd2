"""Every strategy that is found, with every SSL method and both encoders, keeps the contract."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from exhaustive import all_but, one_of_each_kind
from ssl_methods import needed, pairs
from tiny_config import UNEVEN

from fedbench.config import Config, config_names
from fedbench.conformance import Trial, run_checks
from fedbench.federation import GrowingStrategy, Mechanism, StagePlan
from fedbench.plugins import builtin_files, load_plugin

STRATEGIES = list(builtin_files("strategies"))
RESNET = {"encoder": {"name": "resnet18", "depth": 4}, "federation": {"rounds": 4, "num_clients": 2}}


def failures(trial: Trial) -> dict[str, str]:
    return {name: str(finding) for name, finding in run_checks(trial).items() if finding is not None}


@pytest.mark.parametrize(("strategy", "ssl"), pairs(STRATEGIES, "lw_fedssl"))
def test_a_strategy_keeps_the_contract(tiny: Callable[..., Config], strategy: str, ssl: str) -> None:
    assert failures(Trial(tiny(needed(ssl), strategy=strategy, ssl=ssl))) == {}


ON_STAGES = [name for name in STRATEGIES if name != "fedmae"]  # which refuses blocks of several shapes


@pytest.mark.parametrize("strategy", all_but("lw_fedssl", ON_STAGES))
@pytest.mark.exhaustive
def test_a_strategy_keeps_the_contract_on_resnet18(tiny: Callable[..., Config], strategy: str) -> None:
    config = tiny(RESNET, {"strategy": strategy, "data": {"num_train": 16}})
    assert failures(Trial(config)) == {}


DRAWN = [name for name in STRATEGIES if name != "fedcybgd"]  # which chooses its clients itself


@pytest.mark.parametrize("strategy", all_but("lw_fedssl", DRAWN))
def test_a_strategy_keeps_the_contract_with_two_of_three_uneven_clients(
    tiny: Callable[..., Config], strategy: str
) -> None:
    assert failures(Trial(tiny(UNEVEN, {"strategy": strategy, "federation": {"participants": 2}}))) == {}


@dataclass(frozen=True)
class Thaws(GrowingStrategy):
    """Layer by layer, and at the last stage all at once: blocks that were frozen are trained again."""

    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        newest = self.newest_blocks(stage, num_blocks)
        blocks = range(num_blocks) if stage == self.num_stages(num_blocks) else newest
        return StagePlan(newest.stop, trainable=blocks, upload=blocks)


def test_a_plan_that_thaws_frozen_blocks_keeps_the_contract(tiny: Callable[..., Config]) -> None:
    strategy = {"name": f"{__name__}:Thaws", "proximal": True}
    assert failures(Trial(tiny(strategy=strategy))) == {}


NEEDS_MORE = ("flasc", "gated_tiers")  # files, a transform: tests of their own have them


@pytest.mark.parametrize(
    "mechanism", one_of_each_kind(name for name in builtin_files("mechanisms") if name not in NEEDS_MORE)
)
def test_a_mechanism_keeps_the_contract(tiny: Callable[..., Config], mechanism: str) -> None:
    needs = load_plugin("mechanisms", mechanism, Mechanism).needs
    assert failures(Trial(tiny(needs, strategy={"name": "lw_fedssl", mechanism: True}))) == {}


@pytest.mark.exhaustive  # its parts are tested above
@pytest.mark.parametrize("preset", config_names("strategies"))
def test_a_preset_keeps_the_contract(tiny: Callable[..., Config], preset: str) -> None:
    assert failures(Trial(tiny(strategy=preset))) == {}
