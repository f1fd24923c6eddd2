"""A round's line is of the round as a whole; of each client its row tells."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedbench.config import Config
from fedbench.conformance.witness import Witness
from fedbench.federation.client import Upload
from fedbench.federation.experiment import prepare
from fedbench.federation.federation import Federation
from fedbench.federation.payload import encode
from fedbench.federation.protocol import Visit
from fedbench.federation.record import RoundRecord
from fedbench.federation.strategy import ClientUpdate

Tiny = Callable[..., Config]
UNRELIABLE = {"num_clients": 8, "participants": 6, "dropout_before": 0.25, "dropout_after": 0.25}
STRANGE = encode({"encoder.nowhere": torch.ones(2)})
STATES = ("returned", "lost_before", "lost_after", "rejected")


@pytest.fixture
def records(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> list[RoundRecord]:
    """Of rounds in which clients are lost before and after they train, and client 2 is always rejected."""
    update = Federation._update

    def spoiled(self: Federation, visit: Visit, upload: Upload) -> ClientUpdate | None:
        return update(self, visit, replace(upload, data=STRANGE) if visit.client == 2 else upload)

    monkeypatch.setattr(Federation, "_update", spoiled)
    return Witness(prepare(tiny(federation=UNRELIABLE))).records


def rows_of(record: RoundRecord) -> list[dict[str, Any]]:
    columns = record.clients()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_every_client_that_was_drawn_has_a_row_that_says_what_became_of_it(records: list[RoundRecord]) -> None:
    seen = set()
    for record in records:
        rows, drawn = rows_of(record), record.participation
        by_state = {state: [row["client"] for row in rows if row["state"] == state] for state in STATES}
        assert [row["client"] for row in rows] == list(drawn.drawn)
        assert by_state["returned"] == record.returned
        assert set(by_state["lost_before"]) == drawn.lost_before
        assert set(by_state["lost_after"]) == drawn.lost_after
        assert {row["client"]: row["reason"] for row in rows if row["reason"] is not None} == record.rejected
        assert by_state["rejected"] == list(record.rejected)
        assert {(row["round"], row["stage"]) for row in rows} == {(record.round_index, record.stage)}
        seen |= {row["state"] for row in rows}
    assert seen == set(STATES)


@pytest.mark.costs
def test_a_clients_row_has_what_its_training_found_and_nothing_where_it_did_not_train(
    records: list[RoundRecord],
) -> None:
    for record in records:
        for row in rows_of(record):
            trained = row["state"] != "lost_before"
            assert trained == (row["client"] in record.uploads)
            for name in ("num_samples", "num_steps", "loss", "added_loss", "effective_rank", "seconds"):
                assert row[name] == (getattr(record.uploads[row["client"]], name) if trained else None)
            assert (row["flops"] is None, row["peak_memory_bytes"] is None) == (not trained, not trained)
            assert row["worker_deaths"] == (0 if trained else None)
            assert (row["download_bytes"] > 0) == trained
            assert (row["upload_bytes"] > 0) == (row["state"] in ("returned", "rejected"))


@pytest.mark.costs
def test_a_line_is_the_sum_the_mean_and_the_limits_of_its_clients_rows(records: list[RoundRecord]) -> None:
    for record in records:
        line, rows = record.to_dict(), rows_of(record)
        trained = [row for row in rows if row["num_samples"] is not None]
        states = [row["state"] for row in rows]
        assert line["num_participants"] == len(rows) == 6
        for state in STATES:
            assert line[f"num_{state}"] == states.count(state)
        assert line["num_lost"] == states.count("lost_before") + states.count("lost_after")
        for name in ("flops", "download_bytes", "upload_bytes"):
            assert line[f"all_clients/{name}"] == sum(row[name] or 0 for row in rows)
        assert line["all_clients/local_steps"] == sum(row["num_steps"] for row in trained)
        assert line["client/peak_memory_bytes"] == max(row["peak_memory_bytes"] for row in trained)
        losses = [row["loss"] for row in trained]
        assert (line["train/min_loss"], line["train/max_loss"]) == (min(losses), max(losses))
        samples = sum(row["num_samples"] for row in trained)
        for name in ("loss", "added_loss", "effective_rank"):
            mean = sum(row["num_samples"] * row[name] for row in trained) / samples
            assert line[f"train/{name}"] == pytest.approx(mean)


def test_the_deaths_of_a_clients_workers_stand_in_its_row_and_their_number_in_the_line(
    records: list[RoundRecord],
) -> None:
    record = records[0]
    first, second = list(record.uploads)[:2]
    record.uploads[first] = replace(record.uploads[first], deaths=2)
    record.uploads[second] = replace(record.uploads[second], deaths=1)
    assert record.to_dict()["workers/num_deaths"] == 3
    assert {row["client"]: row["worker_deaths"] for row in rows_of(record) if row["worker_deaths"]} == {
        first: 2,
        second: 1,
    }


def test_a_line_holds_nothing_that_grows_with_the_number_of_clients(records: list[RoundRecord]) -> None:
    for record in records:
        assert {type(value) for value in record.to_dict().values()} <= {int, float, str, type(None)}


def test_one_loss_that_is_no_number_leaves_no_limits(records: list[RoundRecord]) -> None:
    record = records[0]
    last = list(record.uploads)[-1]
    record.uploads[last] = replace(record.uploads[last], loss=float("nan"))
    line = record.to_dict()
    assert str([line["train/min_loss"], line["train/max_loss"], line["train/loss"]]) == "[nan, nan, nan]"


def test_a_round_in_which_nobody_trained_has_no_losses(tiny: Tiny) -> None:
    record = Witness(prepare(tiny(federation={"dropout_before": 1.0}))).records[0]
    line = record.to_dict()
    assert [line[key] for key in ("train/loss", "train/min_loss", "train/max_loss")] == [None] * 3
    assert record.clients()["state"] == ["lost_before"] * 3
