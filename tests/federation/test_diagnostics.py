"""What is told of a round, against figures computed here: numpy, naive loops, local training written by hand.

Shapes: B samples, D dimensions, P values of an update.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from by_hand import ByHand
from numpy.typing import NDArray
from tiny_config import TINY, UNEVEN
from torch import Tensor

from fedbench.config import load_config
from fedbench.conformance.witness import Observation, Witness
from fedbench.encoders.tensor_groups import StateDict
from fedbench.federation import LocalStep, StagePlan, Strategy
from fedbench.federation.diagnostics import PairwiseL2, effective_rank, step_norm
from fedbench.federation.experiment import prepare
from fedbench.federation.participation import Participation
from fedbench.federation.record import RoundRecord
from fedbench.federation.shipment import Shipment
from fedbench.metering.step import StepCost
from fedbench.training.model import build_model, freeze_all_but

SIZES = [40, 5, 15]  # of the uneven clients
SLOPE = 0.01


@dataclass(frozen=True)
class Tilted(Strategy):
    """FedSSL with an added loss."""

    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        return StagePlan(num_blocks, range(num_blocks), range(num_blocks))

    def local_loss(self, step: LocalStep) -> Tensor:
        return SLOPE * torch.stack([weight.sum() for weight in step.trained.values()]).sum()


def rank_by_hand(z_BD: NDArray[np.float64]) -> float:
    """exp of the entropy of the singular values' shares, by way of the covariance's eigenvalues."""
    centred = z_BD - z_BD.mean(axis=0)
    singular = np.sqrt(np.linalg.eigvalsh(centred.T @ centred).clip(0))
    shares = [value / singular.sum() for value in singular if value > 0]
    return math.exp(-sum(share * math.log(share) for share in shares))


def flat(state: StateDict) -> NDArray[np.float64]:
    """The floating-point values of a state (P,), in the order of their names."""
    values = [state[key].double().numpy().ravel() for key in sorted(state) if state[key].is_floating_point()]
    return np.concatenate(values)


def norm(values: NDArray[np.float64]) -> float:
    return math.sqrt(sum(value * value for value in values.tolist()))


def test_the_effective_rank_is_that_of_the_centred_projections() -> None:
    torch.manual_seed(0)
    z_BD = torch.randn(20, 5) * torch.tensor([1.0, 2.0, 0.1, 5.0, 0.5]) + torch.tensor([30.0, 0, -7, 1, 2])
    assert effective_rank(z_BD) == pytest.approx(rank_by_hand(z_BD.double().numpy()), rel=1e-4)


def test_the_effective_rank_lies_between_a_line_and_all_dimensions() -> None:
    line, cross = torch.linspace(0, 1, 9)[:, None] * torch.tensor([1.0, -2.0, 3.0]) + 5, torch.eye(3)
    assert effective_rank(line) == pytest.approx(1.0, abs=1e-3)
    assert effective_rank(torch.cat([cross, -cross])) == pytest.approx(3.0)
    assert effective_rank(torch.full((4, 3), 2.0)) == pytest.approx(1.0)  # collapsed
    assert math.isnan(effective_rank(torch.tensor([[1.0, math.inf], [0.0, 1.0]])))


def test_the_distance_between_updates_is_that_of_naive_loops() -> None:
    draw = torch.Generator().manual_seed(1)
    updates = [{"a": torch.randn(3, 2, generator=draw), "b": torch.randn(4, generator=draw)} for _ in range(5)]
    distances = PairwiseL2()
    for update in updates:
        distances.add({**update, "count": torch.tensor(9)})
    pairs = [norm(flat(one) - flat(other)) for one, other in itertools.combinations(updates, 2)]
    assert distances.mean() == pytest.approx(sum(pairs) / 10)


def test_the_norm_of_a_step_is_the_root_of_the_sum_of_squares() -> None:
    before = {
        "a": torch.tensor([[1.0, 2.0]]),
        "b": torch.tensor([3.0]),
        "count": torch.tensor(4),
        "c": torch.ones(2),
    }
    after = {"b": torch.tensor([6.0]), "a": torch.tensor([[1.0, -2.0]]), "count": torch.tensor(90)}
    assert step_norm(before, after) == pytest.approx(5.0)


@pytest.fixture(scope="module")
def seen() -> dict[str, Witness]:
    """Whole runs over uneven clients, by strategy."""
    cases = {
        "tilted": {"strategy": f"{__name__}:Tilted", "federation": {"rounds": 2, "local_epochs": 2}},
        "lw_fedssl@v3": {"strategy": "lw_fedssl@v3", "federation": {"rounds": 3}},
    }
    return {name: Witness(prepare(load_config(TINY, UNEVEN, case))) for name, case in cases.items()}


def test_the_uneven_clients_are_uneven(seen: dict[str, Witness]) -> None:
    assert [len(indices) for indices in seen["tilted"].experiment.client_indices] == SIZES


def hand(witness: Witness, visit: Observation) -> ByHand:
    experiment, config = witness.experiment, witness.experiment.config
    model = build_model(config, visit.plan.depth)
    model.load_online(visit.before)
    freeze_all_but(model, visit.plan.trained_groups)
    images = experiment.client_indices[visit.client].tolist()
    where = (images, visit.round_index, visit.client)
    return ByHand(model, config, experiment.views, experiment.dataset.train_images, where, SLOPE)


def test_what_is_told_of_a_client_is_what_the_loop_by_hand_finds(seen: dict[str, Witness]) -> None:
    witness = seen["tilted"]
    for visit in witness.visits[3:6]:  # the second round: each client's images in another order than in the first
        told, expected = witness.records[1].uploads[visit.client], hand(witness, visit)
        steps = len(expected.losses)
        assert (told.num_samples, told.num_steps) == (SIZES[visit.client], steps)
        assert told.loss == pytest.approx(sum(expected.losses) / steps, rel=1e-4)
        assert told.added_loss == pytest.approx(sum(expected.added) / steps, rel=1e-4)
        assert told.effective_rank == pytest.approx(rank_by_hand(expected.z1_BD.double().numpy()), rel=1e-3)


@pytest.mark.parametrize(
    ("key", "figure"),
    [("train/loss", "loss"), ("train/added_loss", "added_loss"), ("train/effective_rank", "effective_rank")],
)
def test_the_mean_over_clients_is_weighted_by_samples(seen: dict[str, Witness], key: str, figure: str) -> None:
    for record in seen["tilted"].records:
        values = [getattr(record.uploads[client], figure) for client in range(3)]
        expected = sum(size * value for size, value in zip(SIZES, values, strict=True)) / 60
        assert record.to_dict()[key] == pytest.approx(expected)
        assert expected != pytest.approx(sum(values) / 3)


def test_a_round_has_its_clients_highest_peak_and_the_flops_of_all_their_steps(seen: dict[str, Witness]) -> None:
    uploads = seen["tilted"].records[0].uploads
    record = RoundRecord(0, 1, Participation((0, 1, 2), frozenset(), frozenset()))
    for client, peak in enumerate((5, 9, 7)):
        record.add(client, Shipment(()), uploads[client], StepCost(10**client, peak, {}, {}))
    steps = [uploads[client].num_steps for client in range(3)]
    assert (record.peak_memory_bytes, record.flops) == (9, steps[0] + 10 * steps[1] + 100 * steps[2])


@pytest.mark.parametrize("name", ["tilted", "lw_fedssl@v3"])
def test_the_model_is_the_mean_of_the_uploads_weighted_by_samples(seen: dict[str, Witness], name: str) -> None:
    witness = seen[name]
    sizes = [len(indices) for indices in witness.experiment.client_indices]
    for number, aggregated in enumerate(witness.aggregated):
        uploads = [visit.upload for visit in witness.visits if visit.round_index == number]
        sums = sum(size * flat(upload) for size, upload in zip(sizes, uploads, strict=True))
        found = flat({key: aggregated[key] for key in uploads[0]})
        np.testing.assert_allclose(found, sums / sum(sizes), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["tilted", "lw_fedssl@v3"])
def test_distance_and_step_of_a_round_are_those_of_what_travelled(seen: dict[str, Witness], name: str) -> None:
    """The step is the clients' alone: calibration, which comes after it, is no part of it."""
    witness = seen[name]
    for record, aggregated in zip(witness.records, witness.aggregated, strict=True):
        visits = [visit for visit in witness.visits if visit.round_index == record.round_index]
        told, sent = record.to_dict(), visits[0].upload
        pairs = [norm(flat(a.upload) - flat(b.upload)) for a, b in itertools.combinations(visits, 2)]
        assert told["updates/pairwise_l2"] == pytest.approx(sum(pairs) / 3, rel=1e-4)
        step = flat({key: aggregated[key] for key in sent}) - flat({key: visits[0].server[key] for key in sent})
        assert told["server/step_norm"] == pytest.approx(norm(step), rel=1e-4)
