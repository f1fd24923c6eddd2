"""Published systems as mechanisms: the limit in which each is a known one, and its formula."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exhaustive import exhaustive
from tiny_config import TINY
from torch import Tensor

import fedbench
from fedbench.config import Config, load_config
from fedbench.conformance.report import check_plugin
from fedbench.conformance.witness import Witness
from fedbench.encoders.tensor_groups import group_of, is_block
from fedbench.errors import UserError
from fedbench.federation import ClientUpdate, Mechanism, ServerState, StagePlan, Strategy, Turn, load_mechanisms
from fedbench.federation.aggregation import Aggregation
from fedbench.federation.experiment import prepare
from fedbench.federation.strategy import load_strategy
from fedbench.random import generator

Tiny = Callable[..., Config]
NEUTRAL: list[
    tuple[str, dict[str, Any], str]
] = [  # mechanism, the fields with which nothing of it is left, strategy
    ("server_optimizer", {"rule": "avgm", "lr": 1.0, "beta1": 0.0}, "fedssl"),
    ("server_optimizer", {"rule": "avgm", "lr": 1.0, "beta1": 0.0}, "lw_fedssl"),
    ("salf", {"stragglers": 0.0}, "fedssl"),
    ("capacity_tiers", {"shares": [1.0], "blocks": [3]}, "prog_fedssl"),
    ("depth_dropout", {"max_depth": 3, "rate": 0.0}, "prog_fedssl"),
    ("effective_movement", {"threshold": 0.0, "window": 2}, "lw_fedssl"),
    ("fedu", {"mu": None, "keep_target": False}, "fedssl"),
    ("fedu", {"mu": None, "keep_target": False}, "lw_fedssl"),
    ("fedu2_aggregation", {"iterations": 0}, "lw_fedssl"),
    ("secure_aggregation", {}, "prog_fedssl"),  # a model: it never does anything
]
ACTIVE: list[Any] = [
    ("l_dawa", {}),
    ("server_optimizer", {"rule": "adam"}),
    exhaustive("server_optimizer", {"rule": "yogi"}),
    exhaustive("server_optimizer", {"rule": "avgm"}),
    ("salf", {"stragglers": 0.7}),
    ("capacity_tiers", {}),
    ("depth_dropout", {"max_depth": 3, "rate": 0.5}),
    ("fedu", {}),
    exhaustive("fedu", {"mu": 0.0}),
    ("fedema", {}),
    ("dp_fedavg", {}),
    ("fedu2_aggregation", {}),
]


def mechanism(name: str, **fields: Any) -> Mechanism:
    (found,) = load_mechanisms({"name": "fedssl", name: fields})
    return found


def final(config: Config) -> dict[str, Tensor]:
    return Witness(prepare(config)).final[-1]


@pytest.fixture(scope="module")
def final_of_prog() -> dict[str, Tensor]:
    return final(load_config(TINY, {"strategy": "prog_fedssl"}))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("name", "fields", "strategy"), NEUTRAL)
def test_with_nothing_of_it_left_it_is_the_strategy_to_the_bit(
    tiny: Tiny, name: str, fields: dict[str, Any], strategy: str
) -> None:
    with_it, without = (
        Witness(prepare(tiny(strategy=one))) for one in ({"name": strategy, name: fields}, {"name": strategy})
    )
    assert same(with_it.final[-1], without.final[-1])
    assert [one.ledger() for one in with_it.records] == [one.ledger() for one in without.records]


@pytest.mark.costs
@pytest.mark.parametrize(("name", "fields"), ACTIVE)
@pytest.mark.parametrize("strategy", [exhaustive("fedssl"), "prog_fedssl"])
def test_what_is_predicted_is_what_is_counted(
    tiny: Tiny, name: str, fields: dict[str, Any], strategy: str
) -> None:
    config = tiny(strategy={"name": strategy, name: fields}, federation={"dropout_after": 0.2})
    records, predicted = Witness(prepare(config)).records, fedbench.profile(config)
    clients = config.federation.num_clients
    assert sum(one.flops for one in records) == pytest.approx(predicted.total("flops", "step") * clients)
    down, up = predicted.total("download_bytes", "step"), predicted.total("upload_bytes", "step")
    assert sum(one.download_bytes for one in records) == pytest.approx(down * clients)
    assert sum(one.upload_bytes for one in records) == pytest.approx(up * clients)
    assert max(one.peak_memory_bytes for one in records) == predicted.peak_memory_bytes


@pytest.mark.parametrize(("name", "fields"), ACTIVE)
def test_it_does_something(
    tiny: Tiny, final_of_prog: dict[str, Tensor], name: str, fields: dict[str, Any]
) -> None:
    assert not same(final(tiny(strategy={"name": "prog_fedssl", name: fields})), final_of_prog)


@pytest.mark.dry_run
@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "fields"), ACTIVE)
def test_it_keeps_what_all_must_keep_to(name: str, fields: dict[str, Any]) -> None:
    assert [row for row in check_plugin(name, fields) if row[2] is not None] == []


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "fields"), ACTIVE)
def test_processes_and_a_stop_leave_the_same_bits(
    tiny: Tiny, tmp_path: Path, name: str, fields: dict[str, Any]
) -> None:
    config = tiny(strategy={"name": "prog_fedssl", name: fields})
    alone = fedbench.run(config, out=tmp_path / "a").path
    processes = config.model_copy(update={"engine": "processes", "workers": 2})
    rounds = fedbench.federate(processes, out=tmp_path / "b")
    for _ in range(3):
        next(rounds)
    rounds.close()
    resumed = fedbench.run(config, out=tmp_path / "b").path
    assert (alone / "encoder.safetensors").read_bytes() == (resumed / "encoder.safetensors").read_bytes()


def test_l_dawa_scales_each_tensor_by_its_cosine_and_counts_clients_alike(tiny: Tiny) -> None:
    witness = Witness(prepare(tiny(strategy={"name": "fedssl", "l_dawa": True}, federation={"rounds": 2})))
    for number, aggregated in enumerate(witness.aggregated):
        visits = [visit for visit in witness.visits if visit.round_index == number]
        for key in ("encoder.blocks.1.mlp.fc1.weight", "encoder.norm.weight", "projection_head.layers.0.weight"):
            old = visits[0].server[key].double().flatten()
            terms = []
            for visit in visits:
                new = visit.upload[key].double().flatten()
                terms.append((new @ old) / (new.norm() * old.norm()) * new)
            expected = torch.stack(terms).mean(0)
            assert torch.allclose(aggregated[key].double().flatten(), expected, rtol=1e-5, atol=1e-7)


def server(values: dict[str, Tensor], depth: int = 1, num_drawn: int = 1) -> ServerState:
    return ServerState(values, frozenset(values), StagePlan.end_to_end(depth), 1, 0, num_drawn, {})


def test_l_dawa_leaves_clients_alone_that_did_not_move_and_shrinks_those_that_did() -> None:
    still = {"w": torch.tensor([0.1, 1 / 3, -7.0]), "scalar": torch.tensor([2.0]), "zero": torch.zeros(3)}
    moved = {"w": torch.tensor([0.1, 1 / 3, 7.0]), "scalar": torch.tensor([5.0]), "zero": torch.ones(3)}
    rule = mechanism("l_dawa")
    assert same(rule.receive(ClientUpdate(0, 9, still), server(still)).state, still)
    received = rule.receive(ClientUpdate(0, 9, moved), server(still))
    assert received.num_samples == 1
    assert received.state["w"].norm() < moved["w"].norm()
    assert torch.equal(received.state["scalar"], moved["scalar"])
    assert torch.equal(received.state["zero"], moved["zero"])


@pytest.mark.parametrize("rule", ["adam", "yogi", "avgm"])
def test_the_servers_rule_is_its_formula_over_three_rounds(rule: str) -> None:
    """By hand with scalars; yogi and adam begin with v = tau^2."""
    lr, beta1, beta2, tau = 0.1, 0.9, 0.99, 1e-3
    optimizer = mechanism("server_optimizer", rule=rule, lr=lr, beta1=beta1, beta2=beta2, tau=tau)
    combine = Aggregation(load_strategy({"name": "fedssl"}), [optimizer], {})
    x, m, v = 1.0, 0.0, tau**2
    for aggregate in (1.5, 1.4, 0.2):
        old = {"w": torch.tensor([x])}
        updates = iter([ClientUpdate(0, 1, {"w": torch.tensor([aggregate])})])
        new = combine(updates, server(old, num_drawn=1))["w"].item()
        difference = aggregate - x
        m = beta1 * m + (difference if rule == "avgm" else (1 - beta1) * difference)
        sign = (v > difference**2) - (v < difference**2)
        v = beta2 * v + (1 - beta2) * difference**2 if rule == "adam" else v - (1 - beta2) * difference**2 * sign
        x += lr * m if rule == "avgm" else lr * m / (v**0.5 + tau)
        assert new == pytest.approx(x, rel=1e-5)
        x = new


def salf_turns(rule: Mechanism, plan: StagePlan, clients: int, number: int) -> list[StagePlan]:
    draws = (generator(0, "test", number, client) for client in range(clients))
    return [rule.visit_plan(plan, Turn(c, number, number, 1, clients, draw)) for c, draw in enumerate(draws)]


@pytest.mark.parametrize("correction", [True, False])
def test_on_average_salf_aggregates_the_mean_of_all_clients(correction: bool) -> None:
    """Two clients, four blocks, both always stragglers: block 1 is missing in 9 of 16 rounds."""
    clients, plan, rounds = 2, StagePlan.end_to_end(4), 6000
    rule = mechanism("salf", stragglers=1.0, correction=correction)
    combine = Aggregation(load_strategy({"name": "fedssl"}), [rule], {})
    keys = [f"encoder.blocks.{block}.w" for block in range(4)]
    old = {key: torch.zeros(1) for key in keys}
    sums = dict.fromkeys(keys, 0.0)
    for number in range(rounds):
        updates = [
            ClientUpdate(c, 1, {keys[b]: torch.tensor([1.0 + 2 * c]) for b in narrowed.trainable})
            for c, narrowed in enumerate(salf_turns(rule, plan, clients, number))
        ]
        new = combine(iter(updates), replace(server(old, 4, clients), round_index=number))
        for key, value in new.items():
            sums[key] += value.item() / rounds
    means = [sums[key] for key in keys]  # of all clients: 2; what nobody sent stays 0
    if correction:
        assert means == pytest.approx([2.0] * 4, abs=0.15)
    else:
        assert means == pytest.approx([2 * (1 - (1 - (b + 1) / 4) ** 2) for b in range(4)], abs=0.1)


@pytest.mark.costs
def test_a_straggler_sends_a_suffix_and_its_work_is_less(tiny: Tiny) -> None:
    witness = Witness(prepare(tiny(strategy={"name": "fedssl", "salf": {"stragglers": 1.0}})))
    lengths = set()
    for visit in witness.visits:
        sent = sorted({group_of(key) for key in visit.upload if is_block(group_of(key))})
        assert sent == [f"block_{number + 1}" for number in range(3 - len(sent), 3)]
        changed = {group_of(key) for key in visit.after if not torch.equal(visit.after[key], visit.before[key])}
        assert {group for group in changed if is_block(group)} == set(sent)
        lengths.add(len(sent))
    assert lengths == {1, 2, 3}
    slow, fast = (
        fedbench.profile(tiny(strategy={"name": "fedssl", "salf": {"stragglers": share}})) for share in (1.0, 0.0)
    )
    assert slow.total("flops", "step") < 0.9 * fast.total("flops", "step")
    assert slow.total("upload_bytes", "step") < fast.total("upload_bytes", "step")


def test_each_tier_trains_its_newest_blocks(tiny: Tiny) -> None:
    tiers = {"shares": [0.34, 0.66], "blocks": [1, 2]}
    visits = Witness(prepare(tiny(strategy={"name": "prog_fedssl", "capacity_tiers": tiers}))).visits
    for visit in visits:
        most = {0: 1, 1: 1, 2: 2}[visit.client] if tiers["shares"][0] * 3 > 1 else 0
        newest = list(range(visit.plan.depth))[-most:]
        assert list(visit.plan.trainable) == list(visit.plan.upload) == newest


@pytest.mark.parametrize("fields", [{"shares": [0.5], "blocks": [1]}, {"shares": [0.5, 0.5], "blocks": [1]}])
def test_tiers_that_are_not_all_clients_are_refused(tiny: Tiny, fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="allowed: lists of one length, shares with the sum 1"):
        prepare(tiny(strategy={"name": "fedssl", "capacity_tiers": fields}))


def test_a_rate_of_one_leaves_the_newest_blocks(tiny: Tiny) -> None:
    dropout = {"max_depth": 3, "rate": 1.0}
    visits = Witness(prepare(tiny(strategy={"name": "prog_fedssl", "depth_dropout": dropout}))).visits
    assert {visit.plan.run for visit in visits} == {(0,), (1,), (2,)}


class AddsAnEntry(Mechanism):
    def after_aggregate(self, values: dict[str, Tensor], server: ServerState) -> dict[str, Tensor]:
        return {**values, "encoder.stem.proj.weight": server.values["encoder.stem.proj.weight"]}


def test_a_mechanism_that_touches_what_nobody_sent_is_refused() -> None:
    combine = Aggregation(load_strategy({"name": "fedssl"}), [AddsAnEntry()], {})
    old = {"w": torch.zeros(1), "encoder.stem.proj.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=r"AddsAnEntry\.after_aggregate adds or leaves out 'encoder\.stem"):
        combine(iter([ClientUpdate(0, 1, {"w": torch.ones(1)})]), server(old))


class OldSignature(Strategy):
    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        return StagePlan.end_to_end(num_blocks)

    def aggregate(self, updates: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return {}


def test_an_aggregate_of_another_signature_is_refused_before_training(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"aggregate takes updates; allowed: aggregate\(self, updates, server\)"):
        prepare(tiny(strategy=f"{__name__}:OldSignature"))


def test_a_strategy_remembers_from_round_to_round() -> None:
    class Counts(OldSignature):
        def aggregate(self, updates: Any, server: ServerState) -> dict[str, Tensor]:
            server.memory["rounds"] = server.memory.get("rounds", torch.zeros(1)) + 1
            return {"w": server.memory["rounds"].clone()}

    combine = Aggregation(Counts(), [], {})
    state = replace(server({"w": torch.zeros(1)}), round_index=1)
    for number in (1, 2, 3):
        assert combine(iter(()), state)["w"].item() == number
