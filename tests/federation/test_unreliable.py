"""Clients that come late, get lost, or send rubbish."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from exhaustive import all_but

from fedbench.config import Config
from fedbench.conformance import Trial, run_checks
from fedbench.conformance.witness import Witness
from fedbench.encoders.tensor_groups import StateDict
from fedbench.federation import ClientUpdate
from fedbench.federation.client import Upload
from fedbench.federation.experiment import prepare
from fedbench.federation.federation import Federation
from fedbench.federation.participation import Participation, participation
from fedbench.federation.payload import decode, encode
from fedbench.federation.protocol import Visit

Tiny = Callable[..., Config]


def test_late_clients_are_not_drawn_before_their_round(tiny: Tiny) -> None:
    config = tiny(federation={"num_clients": 6, "late_clients": 2, "late_round": 3})
    assert [len(participation(config, index).drawn) for index in range(5)] == [4, 4, 4, 6, 6]
    assert max(participation(config, 0).drawn) == 3


def test_clients_are_drawn_uniformly_and_lost_with_their_probability(tiny: Tiny) -> None:
    federation = {"num_clients": 10, "participants": 4, "dropout_before": 0.2, "dropout_after": 0.3}
    config = tiny(federation=federation)
    rounds = [participation(config, index) for index in range(2000)]
    drawn = torch.bincount(torch.tensor([client for one in rounds for client in one.drawn])) / 2000
    assert drawn.tolist() == pytest.approx([0.4] * 10, abs=0.05)
    before = sum(len(one.lost_before) for one in rounds) / 8000
    after = sum(len(one.lost_after) for one in rounds) / 8000
    assert before == pytest.approx(0.2, abs=0.02)
    assert after == pytest.approx(0.8 * 0.3, abs=0.02)


@pytest.mark.costs
def test_a_client_lost_after_training_has_spent_its_download_and_one_lost_before_has_not(tiny: Tiny) -> None:
    whole = Witness(prepare(tiny())).records[0]
    after = Witness(prepare(tiny(federation={"dropout_after": 1.0}))).records
    assert after[0].download_bytes == whole.download_bytes
    assert [record.upload_bytes for record in after] == [0] * 6
    assert after[0].flops == whole.flops
    before = Witness(prepare(tiny(federation={"dropout_before": 1.0}))).records
    assert [record.download_bytes + record.upload_bytes + record.flops for record in before] == [0] * 6


def test_a_round_in_which_nobody_returns_keeps_the_model_and_says_so(tiny: Tiny) -> None:
    witness = Witness(prepare(tiny(federation={"dropout_after": 1.0})))
    assert all(record.to_dict()["num_returned"] == 0 for record in witness.records)
    assert all(torch.equal(witness.final[0][key], witness.final[-1][key]) for key in witness.final[0])


@pytest.mark.parametrize("strategy", all_but("lw_fedssl", ["fedssl", "lw_fedssl", "prog_fedssl", "lw_fedssl@v3"]))
def test_every_strategy_keeps_the_contract_among_unreliable_clients(tiny: Tiny, strategy: str) -> None:
    federation = {"dropout_before": 0.2, "dropout_after": 0.3, "late_clients": 1, "late_round": 3}
    findings = run_checks(Trial(tiny(strategy=strategy, federation=federation)))
    assert {name: str(finding) for name, finding in findings.items() if finding} == {}


def test_catch_up_is_what_a_client_lacks_because_it_was_not_there(tiny: Tiny) -> None:
    config = tiny(strategy="lw_fedssl", federation={"late_clients": 1, "late_round": 5})
    witness = Witness(prepare(config))
    finished = ("encoder.stem", "encoder.blocks.0", "encoder.blocks.1")
    sizes = [value.nbytes for key, value in witness.final[-1].items() if key.startswith(finished)]
    assert [record.catch_up_bytes for record in witness.records] == [0, 0, 0, 0, 0, sum(sizes)]


@pytest.mark.parametrize("strategy", all_but("lw_fedssl@v3", ["fedssl", "lw_fedssl@v4", "lw_fedssl@v3"]))
@pytest.mark.parametrize("empty", [2, 3])  # a stage's first round, and its last
def test_a_round_from_which_nobody_returned_makes_no_catch_up_of_the_next(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, empty: int, strategy: str
) -> None:
    """Nobody missed what the others have: what they are sent after it is the round's, or a finished block."""

    def none_in_one_round(config: Config, round_index: int, choose: object) -> Participation:
        everyone = tuple(range(config.federation.num_clients))
        return Participation(everyone, frozenset(everyone if round_index == empty else ()), frozenset())

    monkeypatch.setattr("fedbench.conformance.witness.participation", none_in_one_round)
    records = Witness(prepare(tiny(strategy=strategy))).records
    assert [len(record.returned) for record in records] == [3 * (number != empty) for number in range(6)]
    assert [record.catch_up_bytes for record in records] == [0] * 6


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda state: b"no safetensors", "does not decode"),
        (lambda state: encode({key: value * float("nan") for key, value in state.items()}), "is not finite"),
        (lambda state: encode({"encoder.nowhere": torch.ones(2)}), "is not a tensor of the model"),
    ],
)
def test_an_unusable_update_is_rejected_counted_and_named(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[StateDict], bytes], reason: str
) -> None:
    update = Federation._update

    def spoiled(self: Federation, visit: Visit, upload: Upload) -> ClientUpdate | None:
        data = spoil(decode(upload.data)) if visit.client == 1 else upload.data
        return update(self, visit, replace(upload, data=data))

    monkeypatch.setattr(Federation, "_update", spoiled)
    witness = Witness(prepare(tiny()))
    record = witness.records[0]
    assert list(record.rejected) == [1]
    assert reason in record.rejected[1]
    assert record.returned == [0, 2]
    assert all(torch.isfinite(value).all() for value in witness.final[-1].values())


def test_a_finite_update_whose_sum_is_not_finite_is_accepted(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two values of 3e38 are float32; their sum is not."""
    update = Federation._update

    def huge(self: Federation, visit: Visit, upload: Upload) -> ClientUpdate | None:
        state = decode(upload.data)
        key, value = next((key, value) for key, value in state.items() if value.numel() > 1)
        large = encode(state | {key: torch.full_like(value, 3e38)})
        return update(self, visit, replace(upload, data=large if visit.client == 1 else upload.data))

    monkeypatch.setattr(Federation, "_update", huge)
    record = Witness(prepare(tiny())).records[0]
    assert record.rejected == {}
    assert record.returned == [0, 1, 2]
