"""Every strategy that is found, with every SSL method and both encoders, keeps the contract."""

from collections.abc import Callable

import pytest

from fedbench.config import Config
from fedbench.conformance import Trial, run_checks
from fedbench.plugins import builtin_files

STRATEGIES = list(builtin_files("strategies"))
RESNET = {"encoder": {"name": "resnet18", "depth": 4}, "federation": {"rounds": 4, "num_clients": 2}}


def failures(trial: Trial) -> dict[str, str]:
    return {name: str(finding) for name, finding in run_checks(trial).items() if finding is not None}


@pytest.mark.parametrize("ssl", builtin_files("ssl"))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_keeps_the_contract(tiny: Callable[..., Config], strategy: str, ssl: str) -> None:
    assert failures(Trial(tiny({"strategy": strategy, "ssl": ssl}))) == {}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_keeps_the_contract_on_resnet18(tiny: Callable[..., Config], strategy: str) -> None:
    config = tiny(RESNET, {"strategy": strategy, "data": {"num_train": 16}})
    assert failures(Trial(config)) == {}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_keeps_the_contract_with_two_of_three_clients(
    tiny: Callable[..., Config], strategy: str
) -> None:
    assert failures(Trial(tiny({"strategy": strategy, "federation": {"participants": 2}}))) == {}
