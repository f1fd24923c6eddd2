"""SCAFFOLD: what travels beside the model is declared, versioned, counted, and is what the paper says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exhaustive import exhaustive
from same_run import (
    assert_a_profile_has_the_bytes_and_flops,
    assert_a_stop_changes_nothing,
    assert_processes_change_nothing,
    run,
)

from fedbench.config import Config
from fedbench.conformance import Trial, run_checks
from fedbench.conformance.witness import Witness
from fedbench.encoders.tensor_groups import is_message, messages_of
from fedbench.errors import UserError
from fedbench.federation.experiment import prepare
from fedbench.federation.record import LEDGER_COLUMNS, RoundRecord
from fedbench.profiling.profile import profile

Tiny = Callable[..., Config]
SGD: dict[str, Any] = {"name": "sgd", "momentum": 0.0, "base_lr": 0.5}
PLAIN = {"strategy": "fedssl", "optimizer": SGD}
UNRELIABLE = {"num_clients": 5, "participants": 3, "dropout_before": 0.2, "dropout_after": 0.2, "late_clients": 1}


def with_variates(strategy: str = "fedssl", **more: Any) -> dict[str, Any]:
    return {"strategy": {"name": strategy, "scaffold": True}, "optimizer": SGD, **more}


def value_bytes(record: RoundRecord, direction: str, of_messages: bool) -> int:
    """Of parameters, or of messages."""
    lines = [dict(zip(LEDGER_COLUMNS, line, strict=True)) for line in record.ledger()]
    own = [one for one in lines if one["direction"] == direction and is_message(str(one["group"])) == of_messages]
    return sum(int(str(one["value_bytes"])) - int(str(one["buffer_bytes"])) for one in own)


@pytest.mark.parametrize("strategy", ["fedssl", exhaustive("lw_fedssl"), exhaustive("prog_fedssl")])
def test_traffic_of_parameters_doubles_exactly_up(tiny: Tiny, tmp_path: Path, strategy: str) -> None:
    """Both ways under FedSSL; what LW-FedSSL hands over of older blocks has no variate."""
    _, records = run(tiny(with_variates(strategy)), tmp_path)
    ways = ("upload", "download") if strategy == "fedssl" else ("upload",)
    for record in records:
        for way in ways:
            assert value_bytes(record, way, of_messages=True) == value_bytes(record, way, of_messages=False) > 0


@pytest.mark.costs
@pytest.mark.parametrize("strategy", ["lw_fedssl", exhaustive("fedssl"), exhaustive("prog_fedssl")])
def test_a_profile_has_the_bytes_and_flops_of_the_run(tiny: Tiny, tmp_path: Path, strategy: str) -> None:
    config = tiny(with_variates(strategy), federation=UNRELIABLE)
    assert_a_profile_has_the_bytes_and_flops(config, tmp_path)


def test_memory_has_the_correction(tiny: Tiny) -> None:
    plain = tiny(PLAIN)
    added = profile(tiny(with_variates())).peak_memory_bytes - profile(plain).peak_memory_bytes
    weights = sum(stage.trained_parameters for stage in profile(plain).stages)
    assert added >= 4 * weights


def test_the_first_round_is_the_strategys_own(tiny: Tiny) -> None:
    """While variates are zero nothing is corrected; from the second round on something is."""
    plain = Witness(prepare(tiny(PLAIN))).aggregated
    corrected = Witness(prepare(tiny(with_variates()))).aggregated
    same = [
        all(torch.equal(one[key], other[key]) for key in one) for one, other in zip(plain, corrected, strict=True)
    ]
    assert same == [True] + [False] * (len(same) - 1)


def test_variates_are_those_of_option_two_by_hand(tiny: Tiny) -> None:
    """A naive double: c_n <- c_n - c + (x - y) / (K lr), c <- c + sum of the changes / N."""
    config = tiny(with_variates(), federation={"num_clients": 3, "participants": 2, "rounds": 4})
    witness = Witness(prepare(config))
    steps = {
        (record.round_index, client): upload.num_steps
        for record in witness.records
        for client, upload in record.uploads.items()
    }
    key = "encoder.blocks.1.attn.qkv.weight"
    c, own = torch.zeros(48, 16), {client: torch.zeros(48, 16) for client in range(3)}
    for round_index in range(4):
        changes = []
        for visit in (one for one in witness.visits if one.round_index == round_index):
            length = steps[round_index, visit.client] * config.optimizer.lr
            new = own[visit.client] - c + (visit.before[key] - visit.after[key]) / length
            changes.append(new - own[visit.client])
            own[visit.client] = new
        c = c + torch.stack(changes).sum(0) / 3
    (said,) = [messages_of("Scaffold", witness.federation.server.messages)]
    assert torch.allclose(said[key], c, atol=1e-5)
    assert c.abs().max() > 1e-3


def test_steps_follow_the_corrected_gradient(tiny: Tiny) -> None:
    """One client, one step: y = x - lr (g - c_n + c), and with N = 1 both variates are the last gradient."""
    config = tiny(with_variates(), federation={"num_clients": 1, "rounds": 3})
    plain = tiny(PLAIN, federation={"num_clients": 1, "rounds": 3})
    one, other = (Witness(prepare(each)).final[-1] for each in (config, plain))
    assert all(torch.allclose(one[key].double(), other[key].double(), atol=1e-5) for key in other)


@pytest.mark.exhaustive
@pytest.mark.parametrize("strategy", ["lw_fedssl", exhaustive("fedssl")])
def test_two_processes_end_with_the_bits_of_none(tiny: Tiny, tmp_path: Path, strategy: str) -> None:
    assert_processes_change_nothing(tiny(with_variates(strategy), federation=UNRELIABLE), tmp_path)


@pytest.mark.parametrize("stop", [3, exhaustive(1), exhaustive(4)])
def test_a_run_goes_on_from_any_round_with_the_same_bits(tiny: Tiny, tmp_path: Path, stop: int) -> None:
    assert_a_stop_changes_nothing(tiny(with_variates("lw_fedssl"), federation=UNRELIABLE), tmp_path, stop)


@pytest.mark.exhaustive
@pytest.mark.parametrize("strategy", ["lw_fedssl", exhaustive("fedssl")])
def test_it_keeps_the_contract(tiny: Tiny, strategy: str) -> None:
    found = run_checks(Trial(tiny(with_variates(strategy))))
    assert {name: str(finding) for name, finding in found.items() if finding is not None} == {}


def test_it_combines_with_a_codec_that_leaves_messages_alone(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(with_variates(), strategy={"name": "fedssl", "scaffold": True, "quantise": True})
    _, records = run(config, tmp_path)
    for record in records[1:]:
        assert value_bytes(record, "upload", of_messages=True) > 3 * value_bytes(
            record, "upload", of_messages=False
        )


@pytest.mark.parametrize("optimizer", [{"name": "adamw"}, {"name": "sgd", "momentum": 0.9}])
def test_other_optimizers_are_refused(tiny: Tiny, optimizer: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"allowed: optimizer\.name=sgd optimizer\.momentum=0"):
        prepare(tiny(strategy={"name": "fedssl", "scaffold": True}, optimizer=optimizer))


MINE = """
from dataclasses import dataclass

import torch

from fedbench.federation import Mechanism, TensorSpec


@dataclass(frozen=True)
class Mine(Mechanism):
    def messages(self, trained, config):
        return {NAME: TensorSpec((2,), torch.float32, False)}

    def end_visit(self, visit):
        SEND

    def after_messages(self, arrived, server):
        return {key: server.messages[key] + value for key, value in arrived.items()}
"""


def mine(tiny: Tiny, folder: Path, name: str, send: str) -> Config:
    path = folder / "mine.py"
    path.write_text(MINE.replace("NAME", repr(name)).replace("SEND", send))
    return tiny(strategy={"name": "fedssl", str(path): {}}, federation={"rounds": 2})


def test_a_message_of_ones_own_is_summed(tiny: Tiny, tmp_path: Path) -> None:
    config = mine(tiny, tmp_path, "dictionary", 'visit.send({"dictionary": torch.tensor([1.0, visit.num_steps])})')
    state, records = run(config, tmp_path / "run")
    assert state["Mine.all/dictionary"].tolist() == [6, sum(upload.num_steps for upload in all_of(records))]


def all_of(records: list[RoundRecord]) -> list[Any]:
    return [upload for record in records for upload in record.uploads.values()]


@pytest.mark.parametrize(
    ("name", "send", "words"),
    [
        (
            "encoder.nowhere",
            "pass",
            r"messages names 'encoder\.nowhere'; allowed: names of tensors under training",
        ),
        (
            "rows",
            'visit.send({"rows": torch.zeros(3)})',
            r"send\('rows'\) of \(3,\), torch\.float32; declared: \(2,\)",
        ),
        ("rows", 'visit.send({"more": torch.zeros(2)})', r"send\('more'\) .*; declared: nothing of that name"),
    ],
)
def test_a_message_that_is_not_declared_is_refused(
    tiny: Tiny, tmp_path: Path, name: str, send: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        run(mine(tiny, tmp_path, name, send), tmp_path / "run")
