"""A stage's plan narrowed for one visit: what the client runs, trains, is sent and sends, and what that costs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import fedbench
from fedbench.config import Config
from fedbench.conformance.witness import Observation, Witness
from fedbench.encoders.tensor_groups import group_of
from fedbench.errors import UserError
from fedbench.federation import Mechanism, StagePlan, Strategy, Turn
from fedbench.federation.experiment import prepare
from fedbench.federation.plan import line_up

Tiny = Callable[..., Config]


@dataclass(frozen=True)
class LastBlocks(Strategy):
    """FedSSL, of which client n trains and uploads the last `last[n]` blocks."""

    last: tuple[int, ...] = (3, 2, 1)

    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        return StagePlan.end_to_end(num_blocks)

    def visit_plan(self, plan: StagePlan, turn: Turn) -> StagePlan:
        return plan.limited_to(range(plan.depth - self.last[turn.client], plan.depth))


@dataclass(frozen=True)
class Noted(Mechanism):
    """Notes turns in a list that the test holds."""

    turns: ClassVar[list[Turn]] = []

    def visit_plan(self, plan: StagePlan, turn: Turn) -> StagePlan:
        self.turns.append(turn)
        return plan


@dataclass(frozen=True)
class WithBlocksOfItsOwn(Mechanism):
    """Returns what is no part of the stage."""

    kind: str = "trainable"

    def visit_plan(self, plan: StagePlan, turn: Turn) -> StagePlan:
        everything = range(plan.depth)
        plans = {
            "trainable": StagePlan(plan.depth, everything, plan.upload),
            "upload": StagePlan(plan.depth, plan.trainable, everything),
            "depth": StagePlan(plan.depth + 1, plan.trainable, plan.upload),
            "nothing is run": plan.without(everything),
            "no plan": None,
        }
        return plans[self.kind]  # type: ignore[return-value]


STRATEGY = f"{__name__}:LastBlocks"


def groups(state: Any) -> set[str]:
    return {group_of(key) for key in state}


def blocks_of(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith("block_")}


@pytest.fixture
def visits(tiny: Tiny) -> list[Observation]:
    return Witness(prepare(tiny(strategy=STRATEGY, federation={"rounds": 2}))).visits


def test_a_client_trains_and_sends_its_own_blocks(visits: list[Observation]) -> None:
    expected = [{"block_1", "block_2", "block_3"}, {"block_2", "block_3"}, {"block_3"}]
    for visit in visits:
        changed = {key for key in visit.after if not torch.equal(visit.after[key], visit.before[key])}
        assert blocks_of(groups(changed)) == blocks_of(groups(visit.upload)) == expected[visit.client]
        assert ("stem" in groups(visit.upload)) == (visit.client == 0)


def test_a_client_is_sent_what_it_lacks_of_all_that_it_runs(visits: list[Observation]) -> None:
    """In the second round each lacks every block: clients' averages changed all of them."""
    for visit in visits:
        assert blocks_of(groups(visit.payload)) == {"block_1", "block_2", "block_3"}
        assert visit.plan.run == (0, 1, 2)


def test_an_entry_is_averaged_over_those_who_sent_it(tiny: Tiny) -> None:
    experiment = prepare(tiny(strategy=STRATEGY, federation={"rounds": 1}))
    witness = Witness(experiment)
    sizes = [len(indices) for indices in experiment.client_indices]
    for key, value in witness.aggregated[0].items():
        sent = [(sizes[visit.client], visit.upload[key]) for visit in witness.visits if key in visit.upload]
        mean = sum(size * one.double() for size, one in sent) / sum(size for size, _ in sent)
        assert torch.allclose(value.double(), mean)  # type: ignore[arg-type]


def test_blocks_that_are_not_trained_save_flops_and_memory(tiny: Tiny) -> None:
    figures = [
        fedbench.profile(tiny(strategy={"name": STRATEGY, "last": [last] * 3})).stages[0] for last in (1, 2, 3)
    ]
    assert [one.flops_per_step for one in figures] == sorted(one.flops_per_step for one in figures)
    assert figures[0].flops_per_step < 0.7 * figures[2].flops_per_step
    assert figures[0].peak_memory_bytes < figures[1].peak_memory_bytes < figures[2].peak_memory_bytes


def test_all_blocks_for_every_client_is_fedssl_to_the_bit(tiny: Tiny) -> None:
    narrowed = Witness(prepare(tiny(strategy={"name": STRATEGY, "last": [3, 3, 3]})))
    whole = Witness(prepare(tiny(strategy="fedssl")))
    assert all(torch.equal(narrowed.final[-1][key], value) for key, value in whole.final[-1].items())
    assert [one.ledger() for one in narrowed.records] == [one.ledger() for one in whole.records]


def test_a_turn_says_whose_it_is_and_when(tiny: Tiny) -> None:
    Noted.turns.clear()
    list(Witness(prepare(tiny(strategy={"name": "lw_fedssl", f"{__name__}:Noted": True}))).records)
    places = [(turn.round_index, turn.round_in_stage, turn.client) for turn in Noted.turns]
    assert places == [(number, number % 2, client) for number in range(6) for client in range(3)]
    assert {(turn.rounds_in_stage, turn.num_clients) for turn in Noted.turns} == {(2, 3)}
    draws = {torch.rand(1, generator=turn.draw).item() for turn in Noted.turns}
    assert len(draws) == 18


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("trainable", r"visit_plan returned trainable=\[0, 1\]; allowed: some of the stage's \[1\]"),
        ("upload", r"visit_plan returned upload=\[0, 1\]"),
        ("depth", "allowed: a StagePlan of depth"),
        ("nothing is run", "drops every block"),
        ("no plan", "visit_plan returned None"),
    ],
)
def test_a_plan_that_is_no_part_of_its_stage_is_refused(tiny: Tiny, kind: str, words: str) -> None:
    name = f"{__name__}:WithBlocksOfItsOwn"
    config = tiny(strategy={"name": "lw_fedssl", name: {"kind": kind}})
    with pytest.raises(UserError, match=rf"WithBlocksOfItsOwn: .*{words}"):
        fedbench.profile(config)


def test_what_is_dropped_is_neither_trained_nor_uploaded_and_the_rest_is() -> None:
    (plan,) = line_up([StagePlan.end_to_end(4)])
    narrow = plan.without([1]).without([2]).limited_to([0, 1, 3])
    assert narrow.run == (0, 3)
    assert narrow.trained_groups == {"stem", "block_1", "block_4", "shared", "norm", "reshape", "heads"}
    assert narrow.uploaded_groups == narrow.trained_groups
    assert narrow.passes == (True, True, True)
    assert plan.without([0]).limited_to([1, 2, 3]).passes == (False, True, True, True)
    assert plan.without([0]).passes == (True, True, True, True)  # the stem is run, and trained
