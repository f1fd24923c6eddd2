"""Orchestra: clients' centroids become prototypes; a view is asked which of them the target sees in the other."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exhaustive import exhaustive
from fedbench.methods.mechanisms.orchestra import SOFTNESS, Orchestra, balanced, clustered
from local_task import local_task
from same_run import (
    assert_a_profile_has_the_bytes_and_flops,
    assert_a_stop_changes_nothing,
    assert_processes_change_nothing,
    run,
)
from torch import Tensor

from fedbench.config import Config
from fedbench.conformance.witness import Witness
from fedbench.errors import UserError
from fedbench.federation import LocalStep
from fedbench.federation.experiment import prepare
from fedbench.federation.messages import know_messages
from fedbench.federation.record import LEDGER_COLUMNS
from fedbench.random import generator
from fedbench.training.visit import VisitHooks

Tiny = Callable[..., Config]
LOCAL, GLOBAL, ROWS, DIM = 4, 5, 12, 8
UNRELIABLE = {"num_clients": 5, "participants": 3, "dropout_before": 0.2, "dropout_after": 0.2, "late_clients": 1}
FIELDS = {"local_clusters": LOCAL, "global_clusters": GLOBAL, "rows": ROWS}
UP, DOWN = "Orchestra.all/centroids", "Orchestra.all/prototypes"


def orchestra(tiny: Tiny, strategy: str = "fedssl", fields: dict[str, Any] | None = None, **more: Any) -> Config:
    own = {**FIELDS, **(fields or {})}
    return tiny(strategy={"name": strategy, "orchestra": own}, ssl="rotation", **more)


def plain(tiny: Tiny, **more: Any) -> Config:
    return tiny(strategy="fedssl", ssl="rotation", **more)


def points(size: int, number: int, dim: int = 3) -> Tensor:
    torch.manual_seed(number)
    return torch.randn(size, dim, dtype=torch.float64)


def test_balanced_shares_are_as_many_for_each_cluster_and_scaled_by_row_and_column_alone() -> None:
    """diag(u) exp(s / epsilon) diag(v), as Sinkhorn and Knopp prove: cross-ratios are the scores'."""
    scores = 0.1 * points(12, 0)
    shares = balanced(scores)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(shares.sum(dim=0), torch.full((3,), 4.0, dtype=torch.float64), rtol=1e-3, atol=0)
    ratio = shares[0, 0] * shares[1, 1] / (shares[0, 1] * shares[1, 0])
    expected = (scores[0, 0] + scores[1, 1] - scores[0, 1] - scores[1, 0]) / SOFTNESS
    assert ratio.log().item() == pytest.approx(expected.item(), rel=1e-6)


def test_clusters_that_are_apart_are_found_and_their_centroids_are_their_mean_directions() -> None:
    around = torch.eye(3, dtype=torch.float64).repeat_interleave(5, dim=0)
    data = F.normalize(around + 0.05 * points(15, 1), dim=1)
    found = clustered(data, data[[0, 5, 10]], 20)
    expected = F.normalize(torch.stack([data[begin : begin + 5].sum(dim=0) for begin in (0, 5, 10)]), dim=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def naive_term(z: Tensor, target: Tensor, prototypes: Tensor, temperature: float) -> float:
    total = 0.0
    for one, other in zip(z, target, strict=True):
        wanted, said = (
            [math.exp(side @ c / side.norm() / temperature) for c in prototypes] for side in (other, one)
        )
        total -= sum(w / sum(wanted) * math.log(s / sum(said)) for w, s in zip(wanted, said, strict=True))
    return total / len(z)


def step(z: tuple[Tensor, Tensor], k: tuple[Tensor, Tensor], prototypes: Tensor) -> LocalStep:
    output: Any = {"loss": torch.zeros(()), "projections": z, "targets": k}
    return LocalStep(output, (), {}, {}, {}, {"prototypes": prototypes})


def test_the_term_is_its_naive_double_each_view_against_the_target_of_the_other() -> None:
    z, k = (points(4, 0), points(4, 1)), (points(4, 2), points(4, 3))
    prototypes = F.normalize(points(5, 4), dim=1)
    term = Orchestra(weight=0.7, temperature=0.4).local_loss(
        step((z[0].float(), z[1].float()), (k[0].float(), k[1].float()), prototypes.float())
    )
    assert term is not None
    expected = naive_term(z[0], k[1], prototypes, 0.4) + naive_term(z[1], k[0], prototypes, 0.4)
    assert term.item() == pytest.approx(0.7 * expected / 2, rel=1e-5)


def test_without_prototypes_the_term_and_its_gradient_are_zero() -> None:
    z = (points(4, 0).requires_grad_(), points(4, 1).requires_grad_())
    term = Orchestra().local_loss(step(z, (points(4, 2), points(4, 3)), torch.zeros(5, 3)))
    assert term is not None
    assert term.item() == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(term, z))


def alike(config: Config, other: Config) -> list[bool]:
    """Whether the aggregates have the same bits, by round."""
    pairs = zip(Witness(prepare(config)).aggregated, Witness(prepare(other)).aggregated, strict=True)
    return [all(torch.equal(one[key], two[key]) for key in one) for one, two in pairs]


def test_without_weight_it_is_the_base_method_and_with_it_from_the_second_round_on_it_is_not(tiny: Tiny) -> None:
    rounds = {"federation": {"rounds": 3}}
    assert alike(orchestra(tiny, fields={"weight": 0}, **rounds), plain(tiny, **rounds)) == [True] * 3
    assert alike(orchestra(tiny, **rounds), plain(tiny, **rounds)) == [True, False, False]


def test_without_weight_nothing_more_travels(tiny: Tiny, tmp_path: Path) -> None:
    (_, records), (_, reference) = (
        run(config, tmp_path / str(number))
        for number, config in enumerate((orchestra(tiny, fields={"weight": 0}), plain(tiny)))
    )
    assert [one.ledger() for one in records] == [one.ledger() for one in reference]


def test_bytes_are_clusters_times_dimensions_times_four_each_way(tiny: Tiny, tmp_path: Path) -> None:
    _, records = run(orchestra(tiny, federation={"num_clients": 4, "participants": 2}), tmp_path)
    for record in records:
        lines = [dict(zip(LEDGER_COLUMNS, line, strict=True)) for line in record.ledger()]
        own = {
            (one["direction"], one["client"]): one["value_bytes"]
            for one in lines
            if one["group"] == "Orchestra.all"
        }
        drawn = record.participation.drawn
        assert own == {("upload", one): LOCAL * DIM * 4 for one in drawn} | {
            ("download", one): GLOBAL * DIM * 4 for one in drawn
        }


def test_a_client_sends_the_centroids_of_its_own_projections(tiny: Tiny) -> None:
    config = orchestra(tiny)
    task = know_messages(local_task(config), config)
    view = torch.randn(ROWS, 1, 8, 8)
    VisitHooks(task, 1, False, {}, 0, lambda name, count: {("Orchestra", ROWS): view}[name, count]).end()
    with torch.no_grad():
        z = F.normalize(task.method.eval().project(view), dim=1)
    assert torch.equal(task.said[UP], clustered(z, z[:LOCAL], 10))


def test_prototypes_are_the_clusters_of_all_centroids_in_the_order_of_their_clients(tiny: Tiny) -> None:
    witness = Witness(prepare(orchestra(tiny, federation={"rounds": 3})), reverse=True)
    for visit in (visit for visit in witness.visits if visit.round_index > 0):
        sent = {one.client: one.reply[UP] for one in witness.visits if one.round_index == visit.round_index - 1}
        centroids = torch.cat([sent[client] for client in range(3)])
        draw = generator(0, "orchestra", visit.round_index - 1)
        first = torch.randperm(3 * LOCAL, generator=draw)[:GLOBAL]
        assert torch.equal(visit.payload[DOWN], clustered(centroids, centroids[first], 10))


def test_where_most_clients_are_lost_there_are_prototypes_all_the_same(tiny: Tiny, tmp_path: Path) -> None:
    """One client's four centroids, eight prototypes."""
    federation = {"num_clients": 4, "dropout_after": 0.7, "rounds": 8}
    state, records = run(orchestra(tiny, fields={"global_clusters": 8}, federation=federation), tmp_path)
    assert 1 in [len(record.returned) for record in records]
    assert state[DOWN].isfinite().all()
    torch.testing.assert_close(state[DOWN].norm(dim=1), torch.ones(8))


@pytest.mark.parametrize(
    ("ssl", "fields", "words"),
    [
        ("byol", {}, r"ssl\.name=byol tells no projections of a target branch; allowed: rotation"),
        ("rotation", {"local_clusters": 13}, r"local_clusters=13 with rows=12; allowed: at most 12"),
        ("rotation", {"global_clusters": 13}, r"global_clusters=13 of 3 clients' .*=4; allowed: at most 12"),
    ],
)
def test_what_cannot_work_is_refused(tiny: Tiny, ssl: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        prepare(tiny(strategy={"name": "fedssl", "orchestra": {**FIELDS, **fields}}, ssl=ssl))


@pytest.mark.costs
@pytest.mark.parametrize("strategy", ["lw_fedssl", exhaustive("fedssl"), exhaustive("prog_fedssl")])
def test_a_profile_has_the_bytes_and_flops_of_the_run(tiny: Tiny, tmp_path: Path, strategy: str) -> None:
    config = orchestra(tiny, strategy, federation=UNRELIABLE)
    assert_a_profile_has_the_bytes_and_flops(config, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("strategy", ["fedssl", exhaustive("lw_fedssl")])
def test_two_processes_end_with_the_bits_of_none(tiny: Tiny, tmp_path: Path, strategy: str) -> None:
    assert_processes_change_nothing(orchestra(tiny, strategy, federation=UNRELIABLE), tmp_path)


@pytest.mark.parametrize("stop", [3, exhaustive(1), exhaustive(2), exhaustive(4), exhaustive(5)])
def test_a_run_goes_on_from_any_round_with_the_same_bits(tiny: Tiny, tmp_path: Path, stop: int) -> None:
    assert_a_stop_changes_nothing(orchestra(tiny, "lw_fedssl", federation=UNRELIABLE), tmp_path, stop)
