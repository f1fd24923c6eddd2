"""Messages whose shape differs by direction: what goes up alone is put together in the order of the clients."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from exhaustive import exhaustive
from same_run import assert_a_stop_changes_nothing, assert_processes_change_nothing, run
from torch import Tensor

from fedbench.config import Config
from fedbench.conformance.witness import Witness
from fedbench.encoders.tensor_groups import is_message
from fedbench.errors import UserError
from fedbench.federation import LocalVisit, Mechanism, ServerState, Specs, TensorSpec
from fedbench.federation.experiment import prepare
from fedbench.federation.payload import encode
from fedbench.federation.record import LEDGER_COLUMNS, RoundRecord
from fedbench.federation.server import RejectedError
from fedbench.profiling.profile import profile

Tiny = Callable[..., Config]
UNRELIABLE = {"num_clients": 5, "participants": 4, "dropout_before": 0.2, "dropout_after": 0.2, "late_clients": 1}
SLOTS = 5


@dataclass(frozen=True)
class Tells(Mechanism):
    """Each client tells its number and a sum of what it trained; all are told of all."""

    def messages(self, trained: Specs, config: Config) -> Specs:
        return {
            "own": TensorSpec((2,), torch.float64, False, "upload"),
            "all": TensorSpec((SLOTS, 2), torch.float64, False, "download"),
            "count": TensorSpec((), torch.int64, False),
        }

    def begin_visit(self, visit: LocalVisit) -> None:
        assert visit.messages.keys() == {"all", "count"}  # in a traced visit too

    def end_visit(self, visit: LocalVisit) -> None:
        total = torch.stack([value.double().sum() for value in visit.trained.values()]).sum()
        number = torch.full((), visit.client, dtype=torch.float64)
        visit.send({"own": torch.stack([number, total]), "count": torch.ones((), dtype=torch.int64)})

    def after_messages(self, arrived: dict[str, Tensor], server: ServerState) -> dict[str, Tensor]:
        assert arrived["own"][:, 0].tolist() == list(server.clients)
        table = torch.full((SLOTS, 2), -1.0, dtype=torch.float64)
        table[: len(server.clients)] = arrived["own"]
        return {"all": table, "count": arrived["count"]}


def telling(tiny: Tiny, strategy: str = "fedssl", **federation: Any) -> Config:
    return tiny(strategy={"name": strategy, f"{__name__}:Tells": True}, federation=federation)


def of_messages(record: RoundRecord, way: str) -> Counter[int]:
    """Bytes of their values, by client."""
    found = Counter[int]()
    for line in (dict(zip(LEDGER_COLUMNS, line, strict=True)) for line in record.ledger()):
        if line["direction"] == way and is_message(str(line["group"])):
            found[int(str(line["client"]))] += int(str(line["value_bytes"]))
    return found


@pytest.mark.parametrize("reverse", [False, True])
def test_they_are_put_together_in_the_order_of_the_clients_whatever_the_order_of_their_return(
    tiny: Tiny, reverse: bool
) -> None:
    witness = Witness(prepare(telling(tiny, rounds=2)), reverse)
    told, last = witness.federation.server.messages["Tells.all/all"], witness.visits[-3:]
    assert [visit.client for visit in last] == ([2, 1, 0] if reverse else [0, 1, 2])
    assert told[:, 0].tolist() == [0, 1, 2, -1, -1]
    sums = {visit.client: visit.reply["Tells.all/own"][1] for visit in last}
    assert told[:3, 1].tolist() == [sums[client] for client in range(3)]
    assert len(set(told[:3, 1].tolist())) == 3


def test_who_is_lost_is_not_among_them_and_what_goes_both_ways_is_summed(tiny: Tiny, tmp_path: Path) -> None:
    state, records = run(telling(tiny, **UNRELIABLE), tmp_path)
    last = next(record for record in reversed(records) if record.returned)
    clients = last.returned
    assert 0 < len(clients) < 4
    assert state["Tells.all/all"][:, 0].tolist() == clients + [-1] * (SLOTS - len(clients))
    assert state["Tells.all/count"].item() == len(clients)


@pytest.mark.costs
@pytest.mark.parametrize("strategy", ["lw_fedssl", exhaustive("fedssl"), exhaustive("prog_fedssl")])
def test_each_way_has_its_own_bytes_and_a_profile_has_those_of_the_run(
    tiny: Tiny, tmp_path: Path, strategy: str
) -> None:
    """16 and 8 bytes up, 80 and 8 down: declared, serialised and received, or the run would have stopped."""
    config = telling(tiny, strategy, **UNRELIABLE)
    _, records = run(config, tmp_path)
    predicted = profile(config)
    for way, expected in (("upload", 16 + 8), ("download", 16 * SLOTS + 8)):
        for record in records:
            assert set(of_messages(record, way).values()) <= {expected}
        assert any(of_messages(record, way) for record in records)
        figure = f"{way}_bytes"
        assert sum(getattr(record, figure) for record in records) == 5 * predicted.total(figure, "step"), way


@pytest.mark.exhaustive
def test_two_processes_end_with_the_bits_of_none(tiny: Tiny, tmp_path: Path) -> None:
    assert_processes_change_nothing(telling(tiny, **UNRELIABLE), tmp_path)


@pytest.mark.parametrize("stop", [3, exhaustive(1), exhaustive(5)])
def test_a_run_goes_on_from_any_round_with_the_same_bits(tiny: Tiny, tmp_path: Path, stop: int) -> None:
    assert_a_stop_changes_nothing(telling(tiny, "lw_fedssl", **UNRELIABLE), tmp_path, stop)


def test_an_upload_with_what_goes_down_alone_is_rejected(tiny: Tiny) -> None:
    server = Witness(prepare(telling(tiny, rounds=1))).federation.server
    own, told = torch.zeros(2, dtype=torch.float64), torch.zeros(SLOTS, 2, dtype=torch.float64)
    assert server.accept(encode({"Tells.all/own": own})).messages.keys() == {"Tells.all/own"}
    with pytest.raises(RejectedError, match=r"Tells\.all/all is not a tensor"):
        server.accept(encode({"Tells.all/own": own, "Tells.all/all": told}))


@dataclass(frozen=True)
class Declares(Mechanism):
    name: str
    direction: Any
    sends: str = ""

    def messages(self, trained: Specs, config: Config) -> Specs:
        name = self.name or min(trained)
        other = {"back": TensorSpec((1,), torch.float32, False, "download")} if self.sends else {}
        return {name: TensorSpec((1,), torch.float32, False, self.direction), **other}

    def end_visit(self, visit: LocalVisit) -> None:
        if self.sends:
            visit.send({self.sends: torch.zeros(1)})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "own", "direction": "upload"}, r"'own', upload alone, and none the other way; allowed"),
        ({"name": "own", "direction": "download"}, r"'own', download alone, and none the other way; allowed"),
        ({"name": "", "direction": "upload"}, r"'encoder.*', upload alone; allowed: .* both ways"),
        (
            {"name": "own", "direction": "upload", "sends": "back"},
            r"send\('back'\) .*; declared: nothing of that name",
        ),
    ],
)
def test_a_direction_that_cannot_be_is_refused(
    tiny: Tiny, tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        run(tiny(strategy={"name": "fedssl", f"{__name__}:Declares": fields}), tmp_path)
