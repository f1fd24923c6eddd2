"""FedCA: the others' rows of the last round are further negatives, and nothing else is."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exhaustive import exhaustive
from fedbench.methods.mechanisms.fedca import FedCA
from fedbench.methods.ssl.simclr import nt_xent
from local_task import local_task
from same_run import (
    assert_a_profile_has_the_bytes_and_flops,
    assert_a_stop_changes_nothing,
    assert_processes_change_nothing,
    run,
)
from torch import Tensor

from fedbench.config import Config
from fedbench.conformance.witness import Observation, Witness
from fedbench.encoders.tensor_groups import StateDict
from fedbench.errors import UserError
from fedbench.federation import LocalStep
from fedbench.federation.experiment import prepare
from fedbench.federation.messages import know_messages
from fedbench.federation.record import LEDGER_COLUMNS, RoundRecord
from fedbench.profiling.profile import profile
from fedbench.training.local import Received
from fedbench.training.visit import VisitHooks, blank

Tiny = Callable[..., Config]
ROWS, DIM = 6, 8
UNRELIABLE = {"num_clients": 5, "participants": 3, "dropout_before": 0.2, "dropout_after": 0.2, "late_clients": 1}
KEYS = [f"FedCA.all/{name}" for name in ("projections", "dictionary", "owners")]


def fedca(tiny: Tiny, strategy: str = "fedssl", rows: int = ROWS, **more: Any) -> Config:
    return tiny(strategy={"name": strategy, "fedca": {"rows": rows}}, ssl="simclr", **more)


def plain(tiny: Tiny, **more: Any) -> Config:
    return tiny(strategy="fedssl", ssl="simclr", **more)


def alike(config: Config, other: Config) -> list[bool]:
    """Whether the aggregates have the same bits, by round."""
    pairs = zip(Witness(prepare(config)).aggregated, Witness(prepare(other)).aggregated, strict=True)
    return [all(torch.equal(one[key], two[key]) for key in one) for one, two in pairs]


def with_negatives(z1: Tensor, z2: Tensor, rows: list[Tensor], temperature: float) -> float:
    """NT-Xent in two loops, with rows that are nobody's positives."""
    z = [one / one.norm() for one in [*z1, *z2]]
    total = 0.0
    for i in range(len(z)):
        similar = {j: math.exp(z[i] @ z[j] / temperature) for j in range(len(z)) if j != i}
        further = sum(math.exp(z[i] @ row / temperature) for row in rows)
        total -= math.log(similar[(i + len(z1)) % len(z)] / (sum(similar.values()) + further))
    return total / len(z)


def step(
    z: tuple[Tensor, Tensor], dictionary: Tensor, is_others: list[bool], temperature: float = 0.3
) -> LocalStep:
    provided = {
        "dictionary": dictionary,
        "is_others": torch.tensor(is_others),
        "temperature": torch.tensor(temperature, dtype=dictionary.dtype),
    }
    output: Any = {"loss": torch.zeros(()), "projections": z}
    return LocalStep(output, (), {}, {}, {}, provided)


def points(size: int, number: int) -> Tensor:
    torch.manual_seed(number)
    return torch.randn(size, 3, dtype=torch.float64)


def test_with_the_term_simclrs_loss_has_the_rows_among_its_negatives() -> None:
    z1, z2, rows = points(4, 0), points(4, 1), F.normalize(points(5, 2), dim=1)
    others = [True, False, True, True, False]
    term = FedCA().local_loss(step((z1.float(), z2.float()), rows.float(), others))
    assert term is not None
    expected = with_negatives(z1, z2, [row for row, is_other in zip(rows, others, strict=True) if is_other], 0.3)
    assert (nt_xent(z1, z2, 0.3) + term).item() == pytest.approx(expected, rel=1e-5)
    assert term.item() > 0.1


def test_a_row_pushes_away_what_is_near_it_and_one_that_is_excluded_does_nothing() -> None:
    z1, z2 = (points(4, number).float().requires_grad_() for number in (0, 1))
    row = F.normalize(z1[:1].detach(), dim=1)
    near = FedCA().local_loss(step((z1, z2), row, [True]))
    none = FedCA().local_loss(step((z1, z2), row, [False]))
    assert near is not None
    assert none is not None
    (gradient,) = torch.autograd.grad(near, z1)
    moved = F.normalize(z1[0] - 0.1 * gradient[0], dim=0)
    assert moved @ row[0] < F.normalize(z1[0], dim=0) @ row[0]
    assert none.item() == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(none, (z1, z2)))


def negatives(tiny: Tiny, client: int) -> Tensor:
    """Rows that a client has for negatives, of a dictionary whose rows are numbered by their slots."""
    config = fedca(tiny)
    task = local_task(config)
    dictionary = torch.arange(3.0).reshape(3, 1, 1).expand(3, ROWS, DIM)
    said = {"FedCA.all/dictionary": dictionary, "FedCA.all/owners": torch.tensor([2, 3, 0])}  # of 1 and 2
    task.received = Received({**task.method.online_state(), **said}, task.images.device)
    VisitHooks(task, 1, False, {}, client, blank(task, (1, 8, 8))).begin()
    has = task.provided["FedCA"]
    return has["dictionary"][has["is_others"]][:, 0]


def test_a_clients_own_rows_are_no_negatives_and_neither_are_empty_slots(tiny: Tiny) -> None:
    assert negatives(tiny, client=1).tolist() == [1.0] * ROWS
    assert negatives(tiny, client=2).tolist() == [0.0] * ROWS
    assert negatives(tiny, client=0).tolist() == [0.0] * ROWS + [1.0] * ROWS


def test_a_client_that_is_alone_trains_as_without(tiny: Tiny) -> None:
    """Its dictionary holds its own rows, from the second round on."""
    alone = {"federation": {"num_clients": 1, "rounds": 3}}
    assert alike(fedca(tiny, **alone), plain(tiny, **alone)) == [True] * 3


def test_without_rows_it_is_the_strategy_itself_and_with_them_from_the_second_round_on_it_is_not(
    tiny: Tiny,
) -> None:
    rounds = {"federation": {"rounds": 3}}
    assert alike(fedca(tiny, rows=0, **rounds), plain(tiny, **rounds)) == [True] * 3
    assert alike(fedca(tiny, **rounds), plain(tiny, **rounds)) == [True, False, False]


def test_without_rows_nothing_more_travels(tiny: Tiny, tmp_path: Path) -> None:
    (_, records), (_, reference) = run(fedca(tiny, rows=0), tmp_path / "a"), run(plain(tiny), tmp_path / "b")
    assert [one.ledger() for one in records] == [one.ledger() for one in reference]


def value_bytes(record: RoundRecord, way: str, dtype: str) -> dict[int, int]:
    lines = [dict(zip(LEDGER_COLUMNS, line, strict=True)) for line in record.ledger()]
    return {
        int(str(one["client"])): int(str(one["value_bytes"]))
        for one in lines
        if (one["group"], one["direction"], one["dtype"]) == ("FedCA.all", way, dtype)
    }


def test_bytes_are_rows_times_dimensions_times_four_each_way(tiny: Tiny, tmp_path: Path) -> None:
    """Up a client's; down those of a slot for each that takes part, and eight bytes for whose the slot is."""
    config = fedca(tiny, federation={"num_clients": 4, "participants": 2})
    _, records = run(config, tmp_path)
    for record in records:
        drawn = record.participation.drawn
        assert value_bytes(record, "upload", "float32") == dict.fromkeys(drawn, ROWS * DIM * 4)
        assert value_bytes(record, "download", "float32") == dict.fromkeys(drawn, 2 * ROWS * DIM * 4)
        assert value_bytes(record, "download", "int64") == dict.fromkeys(drawn, 2 * 8)
        assert value_bytes(record, "upload", "int64") == {}


def rows_sent(visits: list[Observation], round_index: int) -> StateDict:
    sent = {one.client: one.reply[KEYS[0]] for one in visits if one.round_index == round_index and one.returned}
    slots, dictionary = sorted(sent), torch.zeros(3, ROWS, DIM)
    owners = torch.zeros(3, dtype=torch.int64)
    for slot, client in enumerate(slots):
        dictionary[slot], owners[slot] = sent[client], client + 1
    return {KEYS[1]: dictionary, KEYS[2]: owners}


def test_the_dictionary_is_what_returned_in_the_last_round_by_client_and_nothing_older(tiny: Tiny) -> None:
    witness = Witness(prepare(fedca(tiny, federation={**UNRELIABLE, "rounds": 8})), reverse=True)
    returned = [len(record.returned) for record in witness.records]
    assert min(returned) < 3
    assert max(returned) == 3
    old = {KEYS[1]: torch.zeros(3, ROWS, DIM), KEYS[2]: torch.zeros(3, dtype=torch.int64)}
    for record in witness.records:
        here = [visit for visit in witness.visits if visit.round_index == record.round_index]
        for visit in here:
            assert all(torch.equal(visit.payload[key], old[key]) for key in KEYS[1:] if key in visit.payload)
        old = rows_sent(witness.visits, record.round_index) if record.returned else old
    last = witness.federation.server.messages
    assert all(torch.equal(last[key], old[key]) for key in KEYS[1:])
    assert sum(KEYS[1] in visit.payload for visit in witness.visits) > 5


def test_rows_are_projections_of_the_clients_images_by_the_model_that_it_trained(tiny: Tiny) -> None:
    config = fedca(tiny)
    task = know_messages(local_task(config), config)
    view = torch.randn(ROWS, 1, 8, 8)
    VisitHooks(task, 1, False, {}, 0, lambda name, count: {("FedCA", ROWS): view}[name, count]).end()
    with torch.no_grad():
        expected = F.normalize(task.method.eval().project(view), dim=1)
    assert torch.equal(task.said[KEYS[0]], expected)


@pytest.mark.parametrize("ssl", ["byol", "moco_v3", exhaustive("vicreg")])
def test_methods_without_simclrs_loss_are_refused(tiny: Tiny, ssl: str) -> None:
    with pytest.raises(UserError, match=rf"strategy\.fedca: ssl\.name={ssl} has no NT-Xent .*; allowed: simclr"):
        prepare(tiny(strategy={"name": "fedssl", "fedca": True}, ssl=ssl))


@pytest.mark.costs
@pytest.mark.parametrize("strategy", ["lw_fedssl", exhaustive("fedssl"), exhaustive("prog_fedssl")])
def test_a_profile_has_the_bytes_and_flops_of_the_run(tiny: Tiny, tmp_path: Path, strategy: str) -> None:
    config = fedca(tiny, strategy, federation=UNRELIABLE)
    assert_a_profile_has_the_bytes_and_flops(config, tmp_path)


def test_flops_have_the_products_of_the_term_and_the_rows(tiny: Tiny) -> None:
    """(2B)^2 D forward, and backward for both sides; 2B M D forward, and backward for the one that is trained."""
    one, other = (profile(each).stages[0] for each in (fedca(tiny), plain(tiny)))
    views, slots = 2 * 8, 3
    own, dictionary = 2 * views**2 * DIM * 3, 2 * views * slots * ROWS * DIM * 2
    assert one.flops_per_step - other.flops_per_step == own + dictionary


@pytest.mark.exhaustive
@pytest.mark.parametrize("strategy", ["fedssl", exhaustive("lw_fedssl")])
def test_two_processes_end_with_the_bits_of_none(tiny: Tiny, tmp_path: Path, strategy: str) -> None:
    assert_processes_change_nothing(fedca(tiny, strategy, federation=UNRELIABLE), tmp_path)


@pytest.mark.parametrize("stop", [1, 3, exhaustive(2), exhaustive(4), exhaustive(5)])
def test_a_run_goes_on_from_any_round_with_the_same_bits(tiny: Tiny, tmp_path: Path, stop: int) -> None:
    assert_a_stop_changes_nothing(fedca(tiny, "lw_fedssl", federation=UNRELIABLE), tmp_path, stop)
