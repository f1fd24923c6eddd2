"""FedU2's aggregator: the shortest combination of directions, and the mean where nothing is left of it."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedbench.methods.mechanisms.fedu2_aggregation import FedU2Aggregation, shortest
from same_run import assert_a_stop_changes_nothing, assert_processes_change_nothing
from scipy.optimize import minimize
from torch import Tensor

from fedbench.config import Config
from fedbench.conformance.witness import Witness
from fedbench.errors import UserError
from fedbench.federation import ClientUpdate, ServerState, StagePlan, Strategy, load_strategy
from fedbench.federation.aggregation import Aggregation
from fedbench.federation.experiment import prepare

Tiny = Callable[..., Config]
START = {"w": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([[4.0]])}
STATISTIC = {"mean": torch.tensor([5.0])}


def aggregated(
    changes: list[list[float]], samples: list[int], **fields: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What becomes of the server's four parameters and a buffer, which client k sends as k; and its memory."""
    memory: dict[str, Any] = {}
    server = ServerState(
        {**START, **STATISTIC}, frozenset(START), StagePlan.end_to_end(1), 1, 0, num_drawn=len(changes)
    )
    updates = [
        ClientUpdate(
            number,
            size,
            {
                "w": START["w"] + torch.tensor(change[:3]),
                "b": START["b"] + change[3],
                "mean": torch.tensor([float(number)]),
            },
        )
        for number, (change, size) in enumerate(zip(changes, samples, strict=True))
    ]
    mechanisms = [FedU2Aggregation(**fields)]
    values = Aggregation(load_strategy({"name": "fedssl"}), mechanisms, memory)(iter(updates), server)
    return values, memory["FedU2Aggregation"]


def test_two_clients_at_right_angles_count_alike_however_far_they_went_and_whatever_they_have() -> None:
    values, memory = aggregated([[2.0, 0, 0, 0], [0, 0, 0, 6.0]], [1, 3])
    assert values["w"].tolist() == pytest.approx([1 + 2 / 2, 2, 3])
    assert values["b"].tolist() == [[pytest.approx(4 + 6 / 2)]]
    assert values["mean"].tolist() == [0.75]  # a buffer: the mean by samples
    assert memory == {}


def test_two_clients_at_an_angle_by_hand() -> None:
    """Directions (1, 0) and (3, 4) / 5: the one between them is the shortest; by samples the first has 9 / 10."""
    values, _ = aggregated([[10.0, 0, 0, 0], [3.0, 4.0, 0, 0]], [9, 1])
    assert values["w"].tolist() == pytest.approx([1 + (10 + 3) / 2, 2 + 4 / 2, 3])


def test_clients_that_agree_are_their_mean() -> None:
    values, _ = aggregated([[1.0, 2, 3, 4], [2.0, 4, 6, 8]], [1, 3])
    assert values["w"].tolist() == pytest.approx([1 + 1.75, 2 + 3.5, 3 + 5.25])


def test_a_client_that_did_not_move_holds_nobody_back() -> None:
    values, _ = aggregated([[0.0, 0, 0, 0], [1.0, 0, 0, 0]], [5, 1])
    assert values["w"].tolist() == [2, 2, 3]


def test_where_nobody_moved_the_model_stays() -> None:
    values, memory = aggregated([[0.0] * 4] * 2, [1, 2])
    assert torch.equal(values["w"], START["w"])
    assert memory == {}


def unit(seed: int, clients: int, entries: int = 20) -> Tensor:
    """Directions that lie to one side, as those of clients do."""
    rows = torch.randn(clients, entries, generator=torch.Generator().manual_seed(seed)).double() + 0.4
    return rows / rows.norm(dim=1, keepdim=True)


def test_of_three_no_combination_on_a_grid_is_shorter() -> None:
    rows = unit(0, 3)
    rows[2] = (rows[0] + 0.7 * rows[1]) / (rows[0] + 0.7 * rows[1]).norm()  # between the two: it needs no weight
    weights = shortest(rows @ rows.T, torch.full((3,), 1 / 3, dtype=torch.float64), 10_000)
    grid = [(a / 50, b / 50, 1 - (a + b) / 50) for a, b in product(range(51), repeat=2) if a + b <= 50]
    best = min((torch.tensor(point).double() @ rows).norm() for point in grid)
    assert (weights @ rows).norm() <= best + 1e-9
    assert weights[2] < 1e-6


@pytest.mark.parametrize("clients", [2, 5, 12])
def test_it_is_the_minimum_and_goes_with_every_client(clients: int) -> None:
    rows = unit(clients, clients)
    products = rows @ rows.T
    start = torch.arange(1.0, clients + 1).double()
    weights = shortest(products, start / start.sum(), 100_000)
    assert weights.min() >= 0
    assert weights.sum().item() == pytest.approx(1)
    found = minimize(
        lambda w: w @ products.numpy() @ w,
        np.full(clients, 1 / clients),
        bounds=[(0, 1)] * clients,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    length = weights @ products @ weights
    assert length.item() == pytest.approx(found.fun, abs=1e-6)
    assert (products @ weights).min() >= length - 1e-6  # no client's direction is less along it than itself is


def test_a_step_never_makes_it_longer() -> None:
    products, weights = unit(3, 6) @ unit(3, 6).T, torch.full((6,), 1 / 6, dtype=torch.float64)
    lengths = [(w := shortest(products, weights, number)) @ products @ w for number in range(20)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]


@pytest.mark.exhaustive
def test_a_run_is_the_same_with_processes_and_after_a_stop(tiny: Tiny, tmp_path: Path) -> None:
    federation = {"num_clients": 4, "participants": 3, "dropout_after": 0.2}
    config = tiny(strategy={"name": "lw_fedssl", "fedu2_aggregation": True}, federation=federation)
    assert_processes_change_nothing(config, tmp_path / "processes")
    assert_a_stop_changes_nothing(config, tmp_path / "stop", 3)


def test_a_servers_rule_may_stand_behind_it(tiny: Tiny) -> None:
    plain = {"server_optimizer": {"rule": "avgm", "lr": 1.0, "beta1": 0.0}}
    alone, behind = (
        Witness(prepare(tiny(strategy={"name": "fedssl", "fedu2_aggregation": True, **more}))).final[-1]
        for more in ({}, plain)
    )
    assert all(torch.equal(value, behind[key]) for key, value in alone.items())


class OwnMean(Strategy):
    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        return StagePlan.end_to_end(num_blocks)

    def aggregate(self, updates: Any, server: ServerState) -> dict[str, Tensor]:
        return super().aggregate(updates, server)


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ({"l_dawa": True}, "LDAWA, which changes updates for the mean; allowed: one of them"),
        ({"capacity_tiers": True}, "CapacityTiers, whose clients send unlike entries; allowed: one plan"),
        ({"name": "progfed"}, "strategy=progfed, whose clients send unlike entries"),
        ({"name": f"{__name__}:OwnMean"}, "which aggregates by a rule of its own"),
    ],
    ids=str,
)
def test_what_it_cannot_combine_with_is_refused(tiny: Tiny, strategy: dict[str, Any], words: str) -> None:
    whole = {"name": "fedssl", **strategy}
    with pytest.raises(UserError, match=rf"strategy\.fedu2_aggregation with .*{words}"):
        prepare(tiny(strategy={**whole, "fedu2_aggregation": True}))
    assert prepare(tiny(strategy={**whole, "fedu2_aggregation": {"iterations": 0}}))
