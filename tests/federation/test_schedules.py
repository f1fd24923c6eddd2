"""Strategies that choose their rounds per stage, their clients, and what begins anew: ProgFed and FedCyBGD."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from fedbench.methods.federation.progfed import ProgFed

import fedbench
from fedbench.config import Config
from fedbench.conformance.witness import Observation, Witness
from fedbench.encoders.tensor_groups import group_of, is_block
from fedbench.errors import UserError
from fedbench.federation import StagePlan, Strategy
from fedbench.federation.experiment import prepare

Tiny = Callable[..., Config]


def blocks(state: Any) -> set[str]:
    return {group for group in map(group_of, state) if is_block(group)}


def test_progfed_of_even_stages_without_warm_up_and_with_kept_heads_is_prog_fedssl_to_the_bit(tiny: Tiny) -> None:
    neutral = {"name": "progfed", "warm_up": 0, "fresh_heads": False, "last_share": None}
    one, other = (Witness(prepare(tiny(strategy=strategy))) for strategy in (neutral, "prog_fedssl"))
    assert all(torch.equal(one.final[-1][key], value) for key, value in other.final[-1].items())
    assert [record.ledger() for record in one.records] == [record.ledger() for record in other.records]


@pytest.mark.parametrize(
    ("rounds", "stages", "expected"),
    [(3000, 4, [375, 375, 375, 1875]), (6, 3, [1, 1, 4]), (3, 3, [1, 1, 1]), (10, 1, [10])],
)
def test_the_last_stage_of_progfed_has_its_share(rounds: int, stages: int, expected: list[int]) -> None:
    """The first case is the published schedule."""
    assert ProgFed().rounds_per_stage(rounds, stages) == expected


@pytest.fixture(scope="module")
def grown() -> Witness:
    from tiny_config import TINY

    from fedbench.config import load_config

    return Witness(prepare(load_config(TINY, {"strategy": {"name": "progfed", "last_share": None}})))


def test_a_warm_up_round_carries_the_newest_block_and_the_heads_alone(grown: Witness) -> None:
    for visit in grown.visits:
        newest = {f"block_{visit.stage}"}
        all_of_them = {f"block_{number}" for number in range(1, visit.stage + 1)}
        is_warm_up = visit.round_index % 2 == 0 and visit.stage > 1
        assert blocks(visit.upload) == (newest if is_warm_up else all_of_them)
        assert {group_of(key) for key in visit.upload} >= {"heads", "norm"}
        changed = {key for key in visit.after if not torch.equal(visit.after[key], visit.before[key])}
        assert blocks(changed) == blocks(visit.upload)


def test_the_heads_of_the_stage_before_are_discarded(grown: Witness) -> None:
    first = {key: value for key, value in grown.visits[0].before.items() if group_of(key) == "heads"}
    for visit in grown.visits:
        if visit.round_index in (2, 4):
            assert all(torch.equal(visit.before[key], value) for key, value in first.items())
    trained = grown.final[1]
    assert not all(torch.equal(trained[key], value) for key, value in first.items())


@pytest.mark.costs
@pytest.mark.parametrize("strategy", ["progfed", "fedcybgd"])
def test_traffic_and_work_follow_from_the_schedule_alone(tiny: Tiny, strategy: str) -> None:
    config = tiny(strategy=strategy, federation={"rounds": 9})
    records, predicted = Witness(prepare(config)).records, fedbench.profile(config)
    clients = config.federation.num_clients
    for figure, counted in (
        ("flops", sum(one.flops for one in records)),
        ("download_bytes", sum(one.download_bytes for one in records)),
        ("upload_bytes", sum(one.upload_bytes for one in records)),
    ):
        assert counted == pytest.approx(predicted.total(figure, "step") * clients)
    assert max(one.peak_memory_bytes for one in records) == predicted.peak_memory_bytes


@pytest.fixture
def turns(tiny: Tiny) -> list[Observation]:
    return Witness(prepare(tiny(strategy="fedcybgd"))).visits


def test_fedcybgd_takes_client_after_client_and_block_after_block(turns: list[Observation]) -> None:
    assert [visit.client for visit in turns] == [0, 1, 2, 0, 1, 2]
    assert [blocks(visit.upload) for visit in turns] == [{f"block_{1 + turn % 3}"} for turn in range(6)]
    assert all(visit.plan.run == (0, 1, 2) for visit in turns)


def test_the_server_takes_over_what_a_turn_sends_and_keeps_the_rest(tiny: Tiny) -> None:
    witness = Witness(prepare(tiny(strategy="fedcybgd")))
    for visit, after in zip(witness.visits, witness.aggregated, strict=True):
        assert all(torch.equal(after[key], visit.upload.get(key, visit.server[key])) for key in after)
    moved = {key for key in after if not torch.equal(after[key], witness.visits[0].server[key])}
    assert blocks(moved) == {"block_1", "block_2", "block_3"}


@dataclass(frozen=True)
class StagePerTurn(Strategy):
    """The same turns, each a stage of its own."""

    def num_stages(self, num_blocks: int) -> int:
        return 6

    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        block = [(stage - 1) % num_blocks]
        return StagePlan(num_blocks, trainable=block, upload=block)

    def clients(self, round_index: int, there: int) -> Sequence[int]:
        return (round_index % there,)


def test_a_stage_for_each_turn_is_the_same_to_the_bit(tiny: Tiny, turns: list[Observation]) -> None:
    staged = Witness(prepare(tiny(strategy=f"{__name__}:StagePerTurn"))).visits
    for one, other in zip(staged, turns, strict=True):
        assert one.client == other.client
        assert all(torch.equal(one.after[key], value) for key, value in other.after.items())
        assert one.upload.keys() == other.upload.keys()
        assert one.payload.keys() == other.payload.keys()


@dataclass(frozen=True)
class Chooses(StagePerTurn):
    chosen: tuple[int, ...] = (0,)
    rounds: tuple[int, ...] = (1,) * 6

    def clients(self, round_index: int, there: int) -> Sequence[int]:
        return self.chosen

    def rounds_per_stage(self, rounds: int, num_stages: int) -> Sequence[int]:
        return self.rounds


@pytest.mark.parametrize("chosen", [[3], [0, 0], [-1]])
def test_a_client_that_is_not_there_is_refused(tiny: Tiny, chosen: list[int]) -> None:
    with pytest.raises(UserError, match=r"round 0: the strategy chose .*allowed: distinct ones from 0 to 2"):
        fedbench.profile(tiny(strategy={"name": f"{__name__}:Chooses", "chosen": chosen}))


@pytest.mark.parametrize("rounds", [[6], [1, 1, 1, 1, 1, 2], [0, 2, 1, 1, 1, 1]])
def test_rounds_that_are_no_schedule_are_refused(tiny: Tiny, rounds: list[int]) -> None:
    with pytest.raises(UserError, match=r"rounds_per_stage returned .*allowed: 6 numbers of at least 1"):
        prepare(tiny(strategy={"name": f"{__name__}:Chooses", "rounds": rounds}))


def test_several_clients_a_turn_are_refused(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"participants=2 with strategy=fedcybgd.*allowed: 1, or null"):
        prepare(tiny(strategy="fedcybgd", federation={"participants": 2}))
