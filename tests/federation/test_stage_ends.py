"""Stages that end by a criterion: effective movement, and a run's other rounds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fedbench.methods.mechanisms.effective_movement import EffectiveMovement

import fedbench
from fedbench.config import Config
from fedbench.conformance.report import check_plugin
from fedbench.conformance.witness import Witness
from fedbench.federation import Mechanism, ServerState, StagePlan, Strategy
from fedbench.federation.aggregation import Aggregation
from fedbench.federation.checkpoint import Checkpoint
from fedbench.federation.experiment import prepare
from fedbench.federation.federation import Federation
from fedbench.federation.strategy import load_strategy
from fedbench.profiling.render import to_dict, to_text

Tiny = Callable[..., Config]
ALWAYS = {
    "threshold": 1.0,
    "window": 2,
}  # a bent path is longer than the distance of its ends: three rounds a stage


def ends(points: list[list[float]], **fields: Any) -> list[bool]:
    """What the criterion says after each round, where the newest block is a point in the plane."""
    mechanism, memory = EffectiveMovement(**fields), dict[str, torch.Tensor]()
    key = "encoder.blocks.0.w"
    said = []
    for number, point in enumerate(points):
        counters = {
            "encoder.norm.weight": torch.tensor([number**2]),
            "encoder.blocks.0.count": torch.tensor(number),
        }
        values = {key: torch.tensor(point), **counters}
        state = ServerState(
            values, frozenset(values) - {"encoder.blocks.0.count"}, StagePlan.end_to_end(1), 1, number, 3, memory
        )
        said.append(mechanism.ends_stage(state))
    return said


def test_a_straight_path_goes_on_and_a_closed_one_ends_the_stage() -> None:
    straight = [[float(step), 2.0 * step] for step in range(6)]
    assert ends(straight, threshold=0.99, window=2) == [False] * 6
    there_and_back = [[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]
    assert ends(there_and_back, threshold=0.01, window=2) == [False, False, True]

    assert ends([*there_and_back, [0.0, 0.0]], threshold=0.9, window=3) == [False, False, False, True]
    assert ends([[1.0, 1.0]] * 4, window=2) == [False] * 4  # nobody returned: nothing is known


def test_the_ratio_is_of_the_distance_to_the_path() -> None:
    """Two legs of a right triangle: 5 / 7."""
    corner = [[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]]
    assert ends(corner, threshold=5 / 7 + 1e-6, window=2)[-1]
    assert not ends(corner, threshold=5 / 7 - 1e-6, window=2)[-1]


def test_the_window_moves_and_memory_does_not_grow() -> None:
    memory = dict[str, torch.Tensor]()
    for number in range(9):
        values = {"encoder.blocks.0.w": torch.tensor([float(number)])}
        state = ServerState(values, frozenset(values), StagePlan.end_to_end(1), 1, number, 3, memory)
        EffectiveMovement(window=3).ends_stage(state)
    assert [value.item() for value in memory.values()] == [5.0, 6.0, 7.0, 8.0]


def test_rounds_that_a_stage_leaves_go_to_the_next_one(tiny: Tiny) -> None:
    strategy = {"name": "lw_fedssl", "effective_movement": ALWAYS}
    config = tiny(strategy=strategy, federation={"rounds": 12})
    stages = [record.stage for record in Witness(prepare(config)).records]
    assert stages == [1] * 3 + [2] * 3 + [3] * 6
    fixed = tiny(strategy="lw_fedssl", federation={"rounds": 12})
    assert [record.stage for record in Witness(prepare(fixed)).records] == [1] * 4 + [2] * 4 + [3] * 4


class SameDepth(Strategy):
    """Three stages of the whole encoder: the second and the third add no block."""

    def num_stages(self, num_blocks: int) -> int:
        return 3

    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        return StagePlan.end_to_end(num_blocks)


def test_a_stage_that_adds_no_block_is_measured_by_those_it_trains(tiny: Tiny) -> None:
    strategy = {"name": f"{__name__}:SameDepth", "effective_movement": ALWAYS}
    config = tiny(strategy=strategy, federation={"rounds": 12})
    assert [record.stage for record in Witness(prepare(config)).records] == [1] * 3 + [2] * 3 + [3] * 6


def test_a_run_says_how_many_rounds_each_stage_had(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(strategy={"name": "lw_fedssl", "effective_movement": ALWAYS}, federation={"rounds": 12})
    assert fedbench.run(config, out=tmp_path).summary["rounds/by_stage"] == [3, 3, 6]


class Wish(Mechanism):
    """Counts how often it is asked."""

    def ends_stage(self, server: ServerState) -> bool:
        server.memory["asked"] = server.memory.get("asked", torch.zeros(())) + 1
        return False


class Another(Wish):
    def ends_stage(self, server: ServerState) -> bool:
        super().ends_stage(server)
        return True


def test_every_mechanism_is_asked_so_that_each_remembers() -> None:
    strategy, state = (
        load_strategy({"name": "fedssl"}),
        ServerState({}, frozenset(), StagePlan.end_to_end(1), 1, 0, 3),
    )
    for mechanisms in ([Wish(), Another()], [Another(), Wish()]):
        memory = dict[str, dict[str, torch.Tensor]]()
        assert Aggregation(strategy, mechanisms, memory).ends_stage(state)
        assert {name: tensors["asked"].item() for name, tensors in memory.items()} == {"Wish": 1, "Another": 1}


def test_a_checkpoint_of_before_stages_could_end_goes_on_with_the_planned_rounds(
    tiny: Tiny, tmp_path: Path
) -> None:
    experiment = prepare(tiny(strategy="lw_fedssl"))
    first, second = (Federation(experiment, tmp_path / name) for name in "ab")
    next(first.rounds())
    kept = first.checkpoint("hash")
    facts = {key: value for key, value in kept.facts.items() if key not in ("ends", "cell_hash")}
    second.resume(Checkpoint("hash", facts, kept.tensors))
    assert second.course.ends == first.course.ends


def test_a_turn_knows_the_rounds_that_its_stage_has_now(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[tuple[int, int, int]]()

    def look(self: Mechanism, plan: StagePlan, turn: Any) -> StagePlan:
        seen.append((turn.round_index, turn.round_in_stage, turn.rounds_in_stage))
        return plan

    monkeypatch.setattr(EffectiveMovement, "visit_plan", look)
    strategy = {"name": "lw_fedssl", "effective_movement": ALWAYS}
    Witness(prepare(tiny(strategy=strategy, federation={"rounds": 12})))
    expected = (
        [(n, n, 4) for n in range(3)]
        + [(n, n - 3, 5) for n in range(3, 6)]
        + [(n, n - 6, 6) for n in range(6, 12)]
    )
    assert list(dict.fromkeys(seen)) == expected


@pytest.mark.exhaustive
def test_a_stop_and_processes_leave_the_same_bits(tiny: Tiny, tmp_path: Path) -> None:
    strategy = {"name": "lw_fedssl", "effective_movement": ALWAYS}
    config = tiny(strategy=strategy, federation={"rounds": 12})
    alone = fedbench.run(config, out=tmp_path / "a").path
    processes = config.model_copy(update={"engine": "processes", "workers": 2})
    for stop in (2, 1, 2):  # in the first stage, just behind its end, in the second
        rounds = fedbench.federate(processes, out=tmp_path / "b")
        for _ in range(stop):
            next(rounds)
        rounds.close()
    resumed = fedbench.run(config, out=tmp_path / "b").path
    assert (alone / "encoder.safetensors").read_bytes() == (resumed / "encoder.safetensors").read_bytes()


def test_the_profile_says_that_it_cannot_know(tiny: Tiny) -> None:
    config = tiny(strategy={"name": "lw_fedssl", "effective_movement": ALWAYS})
    found = fedbench.profile(config)
    assert found.unknown == (
        "effective_movement ends a stage by a criterion: these are the figures of the fixed rounds, "
        "a run may have others",
    )
    assert found.unknown[0] in " ".join(to_text([found], "step").split())
    assert to_dict([found], "step")["unknown"] == list(found.unknown)
    assert fedbench.profile(tiny(strategy="lw_fedssl")).unknown == ()


@pytest.mark.exhaustive
def test_it_keeps_what_all_must_keep_to() -> None:
    assert [row for row in check_plugin("effective_movement", {}) if row[2] is not None] == []
