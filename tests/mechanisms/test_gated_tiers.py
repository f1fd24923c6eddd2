"""Tiers of dense + gated SSL: what a poor client computes, trains and costs, and that a rich one is as ever."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exhaustive import exhaustive
from fedbench.methods.transforms.slim_gates import SlimMLP
from same_run import assert_a_stop_changes_nothing, assert_processes_change_nothing, equal, run

import fedbench
from fedbench.config import Config
from fedbench.conformance import Trial, run_checks
from fedbench.conformance.witness import Witness
from fedbench.encoders import initial_encoder
from fedbench.errors import UserError
from fedbench.federation import Mechanism, StagePlan, Turn
from fedbench.federation.experiment import prepare

Tiny = Callable[..., Config]
TOKENS, WIDTH, CHANNELS, BLOCKS = 4, 16, 64, 3
DENSITY, COMPUTED = 0.25, 16  # of 64 channels
LOSING = {"num_clients": 5, "participants": 3, "dropout_before": 0.2, "dropout_after": 0.2, "late_clients": 1}


def sections(transform: str = "slim_gates", ssl: str = "gated_vicreg") -> dict[str, Any]:
    gates = {"name": transform, "density": DENSITY, "dense": ssl == "gated_vicreg"}
    return {"encoder": {"transforms": [gates]}, "ssl": {"name": ssl}}


def tiers(strategy: str = "fedssl", **fields: Any) -> dict[str, Any]:
    return {"name": strategy, "gated_tiers": fields}


def of_dense_norms(key: str) -> bool:
    return ".dense." in key


@pytest.mark.costs
@pytest.mark.parametrize("strategy", ["fedssl", "lw_fedssl"])
def test_where_all_are_rich_it_is_the_run_with_gates_to_the_bit(tiny: Tiny, tmp_path: Path, strategy: str) -> None:
    rich, records = run(tiny(sections(), strategy=tiers(strategy, rich=1)), tmp_path / "a")
    plain, others = run(tiny(sections("gates"), strategy=strategy), tmp_path / "b")
    assert equal(rich, plain)
    assert [one.ledger() for one in records] == [one.ledger() for one in others]
    assert [one.client_flops for one in records] == [one.client_flops for one in others]


def test_a_poor_client_computes_the_channels_that_the_batch_opens_most_readily(tiny: Tiny) -> None:
    encoder = initial_encoder(tiny(sections()).encoder, 1, seed=1).eval()
    mlp: Any = encoder.blocks[0].mlp
    assert isinstance(mlp, SlimMLP)
    with torch.no_grad():
        mlp.gate.bias.normal_()
    x = torch.randn(5, TOKENS, WIDTH) + 4 * torch.randn(5, 1, WIDTH)
    logits = x.mean(1) @ mlp.gate.weight.T + mlp.gate.bias
    chosen = sorted(range(CHANNELS), key=lambda channel: -sum(logits[:, channel].tolist()))[:COMPUTED]
    assert (logits[:, chosen] < 0).any()  # some samples close some of them all the same
    expected = mlp.module.fc2.bias.expand(5, TOKENS, WIDTH).clone()
    for sample in range(5):
        for channel in chosen:
            if logits[sample, channel] > 0:
                hidden = mlp.module.act(x[sample] @ mlp.module.fc1.weight[channel] + mlp.module.fc1.bias[channel])
                expected[sample] += hidden[:, None] * mlp.module.fc2.weight[:, channel]
    whole = mlp(x)
    encoder.ways.keep_to("gated")
    torch.testing.assert_close(mlp(x), expected)
    assert not torch.allclose(whole, expected, atol=1e-3)
    encoder.ways.keep_to("")
    assert torch.equal(mlp(x), whole)


def test_both_views_of_a_poor_client_go_the_gated_way(tiny: Tiny) -> None:
    encoder = initial_encoder(tiny(sections()).encoder, 1, seed=1)
    encoder.ways.keep_to("gated")
    with encoder.ways.take("dense"):
        assert encoder.ways.taken == "gated"
    encoder.ways.keep_to("")
    with encoder.ways.take("dense"):
        assert encoder.ways.taken == "dense"
    apart = [encoder.ways.is_apart("blocks.0.norm1.dense.weight", way) for way in ("gated", "dense", "")]
    assert apart == [True, False, False]
    with pytest.raises(UserError, match="way='sideways'; allowed: a way of the encoder, gated or dense"):
        encoder.ways.keep_to("sideways")


@pytest.mark.costs
def test_the_flops_of_a_poor_client_fall_by_the_channels_that_it_does_not_compute(tiny: Tiny) -> None:
    """Two views through K for H channels forward and twice that backward; a gate for the second view, too; which
    channels they are, from one token for each view and nothing backward."""
    record = Witness(prepare(tiny(sections(), strategy=tiers(rich=0.5), federation={"rounds": 1}))).records[0]
    batch, steps, products = 8, 3, 2  # 20 images a client; fc1 and fc2
    spared = 2 * batch * TOKENS * products * WIDTH * (CHANNELS - COMPUTED)
    more = batch * WIDTH * CHANNELS
    choice = 2 * WIDTH * CHANNELS
    macs = steps * BLOCKS * (3 * (spared - more) - choice)
    assert record.client_flops[0] == record.client_flops[1] == record.client_flops[2] + 2 * macs


@pytest.mark.costs
@pytest.mark.parametrize("ssl", ["gated_vicreg", "moco_v3"])
def test_the_memory_of_a_poor_client_falls(tiny: Tiny, ssl: str) -> None:
    """By a hidden tensor of every block at least."""
    large = {"data": {"num_train": 384}, "optimizer": {"batch_size": 128}, "federation": {"rounds": 1}}
    record = Witness(prepare(tiny(sections(ssl=ssl), large, strategy=tiers()))).records[0]
    rich, _, poor = (record.client_peak_memory_bytes[client] for client in range(3))
    assert rich - poor > 4 * BLOCKS * 128 * TOKENS * (CHANNELS - COMPUTED)


@pytest.mark.costs
@pytest.mark.parametrize("strategy", [exhaustive("fedssl"), "lw_fedssl", exhaustive("prog_fedssl")])
@pytest.mark.parametrize("federation", [exhaustive({}), LOSING], ids=str)
def test_profile_is_the_run(tiny: Tiny, strategy: str, federation: dict[str, Any]) -> None:
    config = tiny(sections(), strategy=tiers(strategy, rich=0.4), federation=federation)
    records, predicted = Witness(prepare(config)).records, fedbench.profile(config)
    for figure in ("download_bytes", "upload_bytes", "flops"):
        counted = sum(getattr(one, figure) for one in records) / config.federation.num_clients
        assert counted == pytest.approx(predicted.total(figure, "step"), rel=1e-12)
    assert max(one.peak_memory_bytes for one in records) == predicted.peak_memory_bytes


def test_a_poor_client_trains_all_but_what_is_of_the_dense_way(tiny: Tiny) -> None:
    witness = Witness(prepare(tiny(sections(), strategy=tiers(rich=0.5), federation={"rounds": 2})))
    for visit in witness.visits:
        moved = {key for key, value in visit.after.items() if not torch.equal(value, visit.before[key])}
        dense = {key for key in visit.after if of_dense_norms(key)}
        assert len(dense) == 2 * (2 * BLOCKS + 1)
        assert moved.isdisjoint(dense) if visit.client == 2 else moved >= dense
        assert moved >= {key.replace("dense", "gated") for key in dense}


def test_the_norms_of_the_dense_way_are_averaged_over_the_rich(tiny: Tiny) -> None:
    witness = Witness(prepare(tiny(sections(), strategy=tiers(rich=0.5), federation={"rounds": 1})))
    after = [visit.after for visit in witness.visits]
    for key, value in witness.aggregated[0].items():
        if value.is_floating_point():
            those = after[:2] if of_dense_norms(key) else after
            expected = sum(one[key].double() for one in those) / len(those)
            assert torch.allclose(value.double(), expected, rtol=0, atol=1e-7), key


def test_where_all_are_poor_the_norms_of_the_dense_way_stay(tiny: Tiny) -> None:
    witness = Witness(prepare(tiny(sections(), strategy=tiers(rich=0), federation={"rounds": 2})))
    first, last = witness.visits[0].server, witness.final[-1]
    kept = {key for key in last if torch.equal(first[key], last[key])}
    assert {key for key in last if of_dense_norms(key)} <= kept
    assert not any(key.endswith("gate.weight") for key in kept)


@pytest.mark.exhaustive
def test_a_run_is_the_same_with_processes_and_after_a_stop(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(sections(), strategy=tiers("lw_fedssl", rich=0.4), federation=LOSING)
    assert_processes_change_nothing(config, tmp_path / "processes")
    assert_a_stop_changes_nothing(config, tmp_path / "stop", 3)


@pytest.mark.parametrize("strategy", ["fedssl", "lw_fedssl"])
def test_it_keeps_what_all_must_keep_to(tiny: Tiny, strategy: str) -> None:
    found = run_checks(Trial(tiny(sections(), strategy=tiers(strategy))))
    assert {name: str(finding) for name, finding in found.items() if finding is not None} == {}


@pytest.mark.parametrize("transforms", [[], ["gates"], ["slim_gates", "cola"]], ids=str)
def test_gates_that_a_client_cannot_do_with_are_refused(tiny: Tiny, transforms: list[str]) -> None:
    with pytest.raises(UserError, match=r"gated_tiers with encoder\.transforms=.*allowed: slim_gates as the last"):
        prepare(tiny({"encoder": {"transforms": transforms}}, strategy=tiers()))


@dataclass(frozen=True)
class Sideways(Mechanism):
    def visit_plan(self, plan: StagePlan, turn: Turn) -> StagePlan:
        return replace(plan, way="sideways")


def test_a_plan_with_a_way_that_there_is_not_is_told(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="way='sideways'"):
        fedbench.profile(tiny(sections(), strategy={"name": "fedssl", f"{__name__}:Sideways": {}}))
