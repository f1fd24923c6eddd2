"""Secure aggregation: a model of its bytes, which are nowhere else, and what it cannot do."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fedbench.methods.mechanisms.secure_aggregation import NAMES, SecureAggregation
from same_run import equal, run

import fedbench
from fedbench.config import Config
from fedbench.conformance.witness import Witness
from fedbench.errors import UserError
from fedbench.federation import ServerState, StagePlan, Strategy
from fedbench.federation.experiment import prepare
from fedbench.profiling.render import to_dict, to_text
from fedbench.reporting.leaderboard import MODEL, leaderboard, read_runs, render
from fedbench.reporting.sorted_table import grid
from fedbench.tracking.run_directory import RunDirectory

Tiny = Callable[..., Config]
KEY = "secure_aggregation/"
LOSING = {"num_clients": 5, "participants": 3, "dropout_before": 0.2, "dropout_after": 0.3, "late_clients": 1}


def secure(strategy: str = "fedssl", **fields: Any) -> dict[str, Any]:
    return {"name": strategy, "secure_aggregation": fields}


def test_four_clients_by_hand() -> None:
    """Sums of four values from 0 to 255 go to 1020, which takes 10 bits; so do those of the weights."""
    model = SecureAggregation(key_bytes=33, share_bytes=40, value_bits=8)
    advertise = 2 * 33 + 3 * 2 * 33  # two keys up, those of three others down
    share = 3 * 2 * 40 + 3 * 2 * 40  # two secrets for each of three others, and theirs
    masked = 101 * 10 / 8 - 100  # 100 entries and a weight
    unmask = 4 * 40
    assert model.of_client(4, 100) == (advertise, share, int(masked + 0.999), unmask) == (264, 480, 27, 160)


def test_four_bits_are_enough_for_fifteen_and_not_for_sixteen() -> None:
    one_bit = SecureAggregation(value_bits=1)  # so that the sum of n goes to n
    assert [one_bit.of_client(n, 799)[2] for n in (15, 16)] == [400 - 100, 500 - 100]


@pytest.mark.parametrize(("users", "entries", "expansion"), [(2**10, 2**20, 1.73), (2**14, 2**24, 1.98)])
def test_the_papers_expansions(users: int, entries: int, expansion: float) -> None:
    plain = 2 * entries  # 16 bits each
    more = sum(SecureAggregation(value_bits=16).of_client(users, entries))
    assert round((plain + more) / plain, 2) == expansion


def test_all_parts_grow_with_the_drawn_clients_and_the_masked_input_with_the_entries() -> None:
    model = SecureAggregation()
    by_clients = [model.of_client(n, 1000) for n in (2, 8, 64, 1024)]
    assert all(a < b for one, other in pairwise(by_clients) for a, b in zip(one, other, strict=True))
    by_entries = [model.of_client(8, m) for m in (1000, 2000, 4000)]
    assert all(one[:2] + one[3:] == other[:2] + other[3:] for one, other in pairwise(by_entries))
    assert all(one[2] < other[2] for one, other in pairwise(by_entries))
    assert all(SecureAggregation(**more).of_client(8, 1000) > by_clients[1] for more in ({"key_bytes": 33},))


def test_who_is_lost_has_shared_keys_and_masks_nothing() -> None:
    model = SecureAggregation()
    keys, shares, masked, unmasking = model.of_client(5, 1000)
    totals = model.of_round(5, 3, 1000)
    assert list(totals) == list(NAMES)
    assert list(totals.values()) == [5 * keys, 5 * shares, 3 * masked, 3 * unmasking]


@pytest.mark.costs
@pytest.mark.parametrize("strategy", ["fedssl", "lw_fedssl"])
@pytest.mark.parametrize("federation", [{}, LOSING], ids=str)
def test_the_figures_are_those_of_the_runs_own_clients_and_entries(
    tiny: Tiny, strategy: str, federation: dict[str, Any]
) -> None:
    config = tiny(strategy=secure(strategy, threshold=0.7), federation=federation)
    witness, model = Witness(prepare(config)), SecureAggregation(threshold=0.7)
    total, failed = dict.fromkeys(NAMES, 0), 0
    for number, record in enumerate(witness.records):
        sent = [visit.reply for visit in witness.visits if visit.round_index == number]
        (entries,) = {sum(value.numel() for value in reply.values()) for reply in sent}
        drawn, returned = len(record.participation.drawn), len(record.returned)
        for name, value in model.of_round(drawn, returned, entries).items():
            total[name] += value
        failed += 10 * returned < 7 * drawn or returned < 2
        figures = {f"{KEY}{name}_bytes": value / config.federation.num_clients for name, value in total.items()}
        told = {f"{KEY}model_bytes": sum(figures.values()), f"{KEY}failed_rounds": failed}
        assert record.figures == figures | told
    assert (failed > 0) == bool(federation)
    assert fedbench.profile(config).figures == record.figures


def test_a_sum_of_one_hides_nobody(tiny: Tiny) -> None:
    late = {"num_clients": 2, "late_clients": 1, "late_round": 4}
    assert fedbench.profile(tiny(strategy=secure(), federation=late)).figures[f"{KEY}failed_rounds"] == 4


def test_variates_are_masked_too(tiny: Tiny) -> None:
    sgd = {"optimizer": {"name": "sgd", "momentum": 0.0}}
    plain, more = (
        fedbench.profile(tiny(sgd, strategy={**secure(), **also})).figures[f"{KEY}masked_input_bytes"]
        for also in ({}, {"scaffold": True})
    )
    assert plain < more < 2 * plain  # buffers have no variates


def test_no_bit_and_no_counted_byte_changes(tiny: Tiny, tmp_path: Path) -> None:
    plain, records = run(tiny(strategy="lw_fedssl", federation=LOSING), tmp_path / "a")
    state, again = run(tiny(strategy=secure("lw_fedssl"), federation=LOSING), tmp_path / "b")
    assert equal(plain, state)
    assert [one.ledger() for one in records] == [one.ledger() for one in again]


@pytest.mark.costs
def test_the_model_stands_in_rounds_summary_profile_and_a_column_of_its_own(tiny: Tiny, tmp_path: Path) -> None:
    config, key = tiny(strategy=secure()), f"{KEY}model_bytes"
    directory = RunDirectory(fedbench.run(config, out=tmp_path).path)
    foreseen = fedbench.profile(config)
    expected = foreseen.figures[key]
    rounds = [one[key] for one in directory.rounds()]
    assert rounds == [pytest.approx(expected * (number + 1) / 6) for number in range(6)]
    assert directory.summary()[key] == to_dict([foreseen], "step")["total"][key] == expected
    assert f"{key} {expected:.4g}" in to_text([foreseen], "step")
    rows = leaderboard(read_runs(tmp_path))
    assert rows[0].secure_aggregation_bytes == expected
    assert rows[0].upload_bytes == foreseen.total("upload_bytes", "step")
    assert f"{MODEL}: what keys" in render(rows)
    assert MODEL in {column.title for column in grid(rows)["columns"]}


@pytest.mark.costs
def test_without_it_no_table_speaks_of_it(tiny: Tiny, tmp_path: Path) -> None:
    fedbench.run(tiny(strategy="fedssl"), out=tmp_path)
    rows = leaderboard(read_runs(tmp_path))
    assert "secure" not in render(rows)
    assert MODEL not in {column.title for column in grid(rows)["columns"]}


class OwnSum(Strategy):
    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        return StagePlan.end_to_end(num_blocks)

    def aggregate(self, updates: Any, server: ServerState) -> dict[str, Any]:
        return super().aggregate(updates, server)


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ({"l_dawa": True}, "LDAWA, which needs every single update on the server; allowed: without"),
        ({"dp_fedavg": True}, "DPFedAvg, which needs every single update"),
        ({"salf": True}, "SALF, which .*lets clients send unlike entries"),
        ({"capacity_tiers": True}, "CapacityTiers, which lets clients send unlike entries"),
        ({"effective_movement": True}, "EffectiveMovement, which ends stages where only the run knows"),
        ({"top_k": True}, "TopK on the way up, .*allowed: a codec that leaves the upload alone"),
        ({"quantise": {"upload": 8}}, "Quantise on the way up"),
        ({"name": "progfed"}, "strategy=progfed, which lets clients send unlike entries"),
        ({"name": "fedcybgd"}, "strategy=fedcybgd, which"),
        ({"name": f"{__name__}:OwnSum"}, "which aggregates by a rule of its own; allowed: a weighted sum"),
    ],
    ids=str,
)
def test_what_it_cannot_do_is_refused(tiny: Tiny, strategy: dict[str, Any], words: str) -> None:
    config = tiny(strategy={**secure(), **strategy})
    with pytest.raises(UserError, match=rf"strategy\.secure_aggregation with .*{words}"):
        prepare(config)


def test_a_round_of_one_client_hides_nobody_and_is_told_as_failed(tiny: Tiny) -> None:
    config = tiny(strategy=secure(), federation={"participants": 1, "rounds": 4})
    assert fedbench.profile(config).figures[f"{KEY}failed_rounds"] == 4


def test_messages_that_the_server_reads_one_by_one_are_refused_and_sums_are_not(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="FedCA, whose messages the server has to see one by one; allowed: sums"):
        prepare(tiny(strategy={**secure(), "fedca": True}, ssl="simclr"))
    sgd = {"name": "sgd", "momentum": 0.0}
    assert prepare(tiny(strategy={**secure(), "scaffold": True}, optimizer=sgd))


@pytest.mark.parametrize("codec", [{"quantise": {"upload": 32}}, {"top_k": {"upload": 1.0}}], ids=str)
def test_a_codec_that_leaves_the_upload_alone_is_allowed(tiny: Tiny, codec: dict[str, Any]) -> None:
    assert prepare(tiny(strategy={**secure(), **codec}))


@pytest.mark.parametrize(
    ("field", "value"), [("key_bytes", 0), ("share_bytes", 0), ("threshold", 0.0), ("value_bits", 65)]
)
def test_a_wrong_field_is_told(tiny: Tiny, field: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"strategy\.secure_aggregation\.{field}"):
        prepare(tiny(strategy=secure(**{field: value})))
