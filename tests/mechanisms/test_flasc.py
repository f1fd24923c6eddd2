"""FLASC: sparse adapters on given weights, in tiers."""

from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from fedbench.methods.mechanisms.flasc import FLASC
from safetensors.torch import save_file
from same_run import assert_a_stop_changes_nothing, assert_processes_change_nothing, run

from fedbench.config import Config
from fedbench.conformance.witness import Witness
from fedbench.encoders import initial_encoder
from fedbench.encoders.tensor_groups import StateDict, group_of
from fedbench.errors import UserError
from fedbench.federation.experiment import prepare
from fedbench.federation.record import LEDGER_COLUMNS
from fedbench.federation.wire import Wire
from fedbench.profiling.profile import profile

Tiny = Callable[..., Config]


@pytest.fixture
def adapted(tiny: Tiny, tmp_path: Path) -> Callable[..., Config]:
    """A configuration with adapters of given weights."""
    given = tmp_path / "given.safetensors"
    config = tiny()
    save_file(initial_encoder(config.encoder, config.encoder.depth, seed=5).state_dict(), given)

    def build(flasc: dict[str, Any] | None, more: dict[str, Any] | None = None, **federation: Any) -> Config:
        strategy = {"name": "fedssl", **({} if flasc is None else {"flasc": flasc}), **(more or {})}
        encoder = {"init": str(given), "transforms": [{"name": "lora", "rank": 4}]}
        return tiny({"strategy": strategy, "encoder": encoder, "federation": federation})

    return build


def in_row(state: StateDict, block: int) -> torch.Tensor:
    return torch.cat([state[key].reshape(-1) for key in sorted(state) if group_of(key) == f"block_{block}"])


def test_at_densities_of_one_it_is_lora_to_the_bit(adapted: Any, tmp_path: Path) -> None:
    plain, records = run(adapted(None), tmp_path / "a")
    dense, again = run(adapted({"download": 1.0, "upload": 1.0}), tmp_path / "b")
    assert all(torch.equal(plain[key], dense[key]) for key in plain)
    assert [one.ledger() for one in records] == [one.ledger() for one in again]


def test_down_go_the_largest_values_and_up_the_largest_changes(adapted: Any) -> None:
    for visit in Witness(prepare(adapted({"download": 0.3, "upload": 0.1}))).visits:
        for block in (1, 2, 3):
            server, received, after, arrived = (
                in_row(state, block) for state in (visit.server, visit.before, visit.after, visit.upload)
            )
            for whole, part, density in ((server, received, 0.3), (after - received, arrived - server, 0.1)):
                count = ceil(density * len(whole))
                assert (part != 0).sum() <= count
                left = whole[part == 0].abs().max()
                assert part[part != 0].abs().min() >= left - 1e-6
        heads = [key for key in visit.server if group_of(key) == "heads"]
        assert all(torch.equal(visit.before[key], visit.server[key]) for key in heads)


def test_bytes_of_a_block_are_those_of_the_formula(adapted: Any, tmp_path: Path) -> None:
    state, records = run(adapted({"download": 0.3, "upload": 0.01}, rounds=2), tmp_path)
    size = in_row(state, 1).numel()
    for direction, density in (("download", 0.3), ("upload", 0.01)):
        count = ceil(density * size)
        for record in records:
            for client in range(3):
                where = (record.round_index, client, direction, "block_1")
                lines = [line for line in record.ledger() if (line[0], *line[2:5]) == where]
                values = sum(line[LEDGER_COLUMNS.index("value_bytes")] for line in lines)  # type: ignore[misc]
                assert values == 4 * count + min(4 * count, ceil(size / 8))


@pytest.mark.costs
def test_clients_of_several_tiers_have_each_their_own_density(adapted: Any, tmp_path: Path) -> None:
    """Though one worker serves them in turn, and one server sends the same version."""
    flasc = {"tiers": [1.0, 0.5, 0.05]}
    config = adapted(flasc, num_clients=4, participants=3)
    _, records = run(config, tmp_path)
    for visit in Witness(prepare(config)).visits:
        received = in_row(visit.before, 2)
        density = flasc["tiers"][visit.client % 3]
        assert (received != 0).sum() <= ceil(density * len(received))
        assert torch.equal(received, in_row(visit.sent, 2))
        assert density < 1 or torch.equal(received, in_row(visit.server, 2))
    predicted = profile(config)
    assert sum(one.download_bytes for one in records) == 4 * predicted.total("download_bytes", "step")
    assert sum(one.upload_bytes for one in records) == 4 * predicted.total("upload_bytes", "step")


@pytest.mark.exhaustive
def test_two_processes_keep_tiers_apart(adapted: Any, tmp_path: Path) -> None:
    config = adapted({"tiers": [1.0, 0.5, 0.05]}, num_clients=4, participants=3)
    assert_processes_change_nothing(config, tmp_path)


def test_it_goes_on_after_any_round_with_the_same_bits(adapted: Any, tmp_path: Path) -> None:
    more = {"server_optimizer": {"rule": "adam"}}
    config = adapted({"tiers": [0.5, 0.1]}, more, num_clients=4, participants=2)
    assert_a_stop_changes_nothing(config, tmp_path, stop=2)


def test_it_is_refused_without_adapters_and_on_random_weights(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"flasc without adapters; allowed: with encoder\.transforms=\[lora\]"):
        prepare(tiny({"strategy": {"name": "fedssl", "flasc": True}}))
    with pytest.raises(UserError, match=r"flasc on random weights; allowed: with encoder\.init"):
        prepare(tiny({"strategy": {"name": "fedssl", "flasc": True}, "encoder": {"transforms": ["lora"]}}))


def test_two_codecs_with_tiers_are_refused() -> None:
    with pytest.raises(UserError, match=r"FLASC and FLASC have tiers of clients; allowed: one codec"):
        Wire([FLASC(tiers=(0.5, 0.1)), FLASC(tiers=(0.5, 0.1))])
