"""FedSpa: sparse models of the clients' own, and payloads that nobody else can take for theirs."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, cos, pi
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pytest
import torch
from exhaustive import exhaustive
from fedbench.methods.mechanisms.fedspa import FedSpa, bitmap_of, erk, exchanged, mask_of
from local_task import local_task
from same_run import (
    assert_a_profile_has_the_bytes_and_flops,
    assert_a_stop_changes_nothing,
    assert_processes_change_nothing,
    equal,
    run,
)
from tiny_config import UNEVEN

from fedbench.config import Config
from fedbench.conformance.witness import Observation, Witness
from fedbench.encoders.tensor_groups import StateDict, TensorSpec, group_of
from fedbench.errors import UserError
from fedbench.federation import ClientUpdate, ServerState, Strategy, Way, weighted_mean
from fedbench.federation.experiment import prepare
from fedbench.federation.federation import Federation
from fedbench.federation.messages import know_messages
from fedbench.federation.payload import decode, encode
from fedbench.federation.record import LEDGER_COLUMNS, RoundRecord
from fedbench.federation.server import RejectedError, Server
from fedbench.federation.shipment import describe
from fedbench.federation.wire import Wire
from fedbench.profiling.profile import profile
from fedbench.running.cell import cell_name, run_cell
from fedbench.tracking.run_directory import RunDirectory
from fedbench.training.local import build_fabric, gradient_on, views_of_one_batch
from fedbench.training.model import build_model
from fedbench.training.visit import VisitHooks

Tiny = Callable[..., Config]
UNRELIABLE = {"num_clients": 5, "participants": 3, "dropout_before": 0.2, "dropout_after": 0.2, "late_clients": 1}


def with_masks(strategy: str = "fedssl", more: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"strategy": {"name": strategy, "fedspa": fields, **(more or {})}}


def layers(config: Config) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that are masked, told from their names alone."""
    specs = describe(build_model(config, config.encoder.depth))
    return {key: spec.shape for key, spec in specs.items() if key.endswith("weight") and len(spec.shape) > 1}


def masks_of(visit: Observation, config: Config) -> StateDict:
    """What both ends remembered of a client when it was sent the payload."""
    wire = Wire(prepare(config).mechanisms, config.seed)
    wire = wire.of_client(visit.client, visit.codec_state)
    masks: StateDict = {}
    specs = describe(build_model(config, visit.plan.depth))
    for group in dict.fromkeys(map(group_of, specs)):
        own = {key: spec for key, spec in specs.items() if group_of(key) == group}
        masks |= wire.holds(group, own, visit.client)
    return masks


def lines(record: RoundRecord, **where: Any) -> Iterator[dict[str, Any]]:
    for line in record.ledger():
        entry = dict(zip(LEDGER_COLUMNS, line, strict=True))
        if all(entry[key] == value for key, value in where.items()):
            yield entry


def value_bytes(record: RoundRecord, **where: Any) -> int:
    return sum(entry["value_bytes"] for entry in lines(record, **where))


@pytest.mark.costs
@pytest.mark.parametrize("strategy", ["fedssl", exhaustive("lw_fedssl@v3"), exhaustive("prog_fedssl")])
def test_at_density_one_it_is_the_strategy_to_the_bit(tiny: Tiny, tmp_path: Path, strategy: str) -> None:
    key = "preset" if "@" in strategy else "name"
    plain, records = run(tiny(strategy={key: strategy}, federation=UNRELIABLE), tmp_path / "a")
    config = tiny(strategy={key: strategy, "fedspa": {"density": 1.0}}, federation=UNRELIABLE)
    dense, again = run(config, tmp_path / "b")
    assert equal(plain, dense)
    assert [one.ledger() for one in records] == [one.ledger() for one in again]
    assert [one.flops for one in records] == [one.flops for one in again]
    assert not (tmp_path / "b").exists()  # nor does a client keep anything


@pytest.mark.parametrize("spread", ["erk", "uniform"])
def test_density_is_that_of_each_layer_in_every_round(tiny: Tiny, spread: str) -> None:
    config = tiny(with_masks(density=0.3, layers=spread), federation=UNRELIABLE)
    shapes, counts = layers(config), dict[str, set[int]]()
    for visit in Witness(prepare(config)).visits:
        masks = masks_of(visit, config)
        assert masks.keys() == shapes.keys()
        for key, mask in masks.items():
            counts.setdefault(key, set()).add(int(mask.sum()))
            assert mask.shape == shapes[key]
    assert all(len(each) == 1 for each in counts.values())
    sizes = {key: torch.Size(shape).numel() for key, shape in shapes.items()}
    for group in {group_of(key) for key in shapes}:
        own = [key for key in shapes if group_of(key) == group]
        held, total = sum(min(counts[key]) for key in own), sum(sizes[key] for key in own)
        assert abs(held - 0.3 * total) <= len(own) / 2  # each layer is rounded
    shares = {min(each) / sizes[key] for key, each in counts.items()}
    assert (max(shares) - min(shares) > 0.05) == (spread == "erk")


def test_a_client_neither_trains_nor_sends_anything_outside_its_mask(tiny: Tiny) -> None:
    config = tiny(with_masks(density=0.4), federation=UNRELIABLE)
    moved = 0
    for visit in Witness(prepare(config)).visits:
        for key, mask in masks_of(visit, config).items():
            assert torch.equal(visit.before[key], visit.server[key] * mask), (visit.round_index, key)
            assert not visit.after[key][~mask].any()
            assert torch.equal(visit.upload[key][~mask], visit.server[key][~mask])
            assert torch.allclose(visit.upload[key][mask], visit.after[key][mask], atol=1e-6)
            assert visit.reply[f"{group_of(key)}/{key}"].shape == (int(mask.sum()),)
            moved += int((visit.after[key] != visit.before[key]).sum())
    assert moved > 0


def test_masks_change_by_magnitude_and_gradient_at_a_rate_that_falls_as_a_cosine(tiny: Tiny) -> None:
    config = tiny(with_masks(density=0.3, prune_rate=0.8), federation={"num_clients": 1, "rounds": 4})
    visits = Witness(prepare(config)).visits
    for visit, after in pairwise(visits):
        old, new = masks_of(visit, config), masks_of(after, config)
        for key, mask in old.items():
            rate = 0.8 / 2 * (1 + cos(pi * visit.round_index / 4))
            gone, come = mask & ~new[key], new[key] & ~mask
            assert int(gone.sum()) == int(come.sum()) == ceil(rate * int(mask.sum())), key
            stayed = (visit.after[key].abs()[mask & new[key]]).min()
            assert visit.after[key].abs()[gone].max() <= stayed


def test_an_exchange_is_what_two_loops_make_of_it() -> None:
    draw = torch.Generator().manual_seed(0)
    weight, gradient = (torch.randn(7, 5, generator=draw) for _ in range(2))
    mask = torch.rand(7, 5, generator=draw) < 0.4
    rows, held = list(range(35)), int(mask.sum())
    inside = [one for one in rows if mask.reshape(-1)[one]]
    outside = [one for one in rows if one not in inside]
    for rate in (0.0, 0.01, 0.5, 1.0):
        swapped = min(ceil(rate * held), len(outside))
        small = sorted(inside, key=lambda one: float(weight.reshape(-1)[one].abs()))[:swapped]
        large = sorted(outside, key=lambda one: -float(gradient.reshape(-1)[one].abs()))[:swapped]
        expected = sorted({*inside, *large} - {*small})
        assert exchanged(mask, weight, gradient, rate).reshape(-1).nonzero().reshape(-1).tolist() == expected


def test_no_more_is_exchanged_than_there_is_outside_and_a_lost_cause_keeps_its_density() -> None:
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1, 2] = False
    weight = torch.arange(1.0, 21).reshape(4, 5)
    new = exchanged(mask, weight, weight, 1.0)
    assert int(new.sum()) == 19
    assert (~new).nonzero().tolist() == [[0, 0]]
    assert int(exchanged(mask, weight * torch.nan, weight * torch.nan, 0.5).sum()) == 19


def test_bytes_are_those_of_the_formula_and_a_mask_travels_only_up_and_only_where_it_changes(
    tiny: Tiny, tmp_path: Path
) -> None:
    for rate in (0.5, 0.0):
        config = tiny(with_masks(density=0.3, prune_rate=rate), federation={"rounds": 2})
        shapes = layers(config)
        sizes = {key: torch.Size(shape).numel() for key, shape in shapes.items() if group_of(key) == "block_1"}
        dense = sum(v.numel() for k, v in run(config, tmp_path / str(rate))[0].items() if group_of(k) == "block_1")
        rest = 4 * (dense - sum(sizes.values()))
        shares = erk({key: shapes[key] for key in sizes}, 0.3)
        values = rest + sum(4 * round(shares[key] * size) for key, size in sizes.items())
        bitmaps = sum(ceil(size / 8) for size in sizes.values()) if rate else 0
        _, records = run(config, tmp_path / f"again{rate}")
        for record in records:
            for client in range(3):
                where = {"client": client, "group": "block_1"}
                assert value_bytes(record, direction="download", **where) == values
                assert value_bytes(record, direction="upload", **where) == values + bitmaps
                assert value_bytes(record, direction="upload", dtype="uint8", **where) == bitmaps
            assert list(lines(record, direction="download", dtype="uint8")) == []
        assert (tmp_path / f"again{rate}").exists() == (rate > 0)  # masks that never change are drawn, not kept


@pytest.mark.costs
def test_the_gradient_for_regrowing_costs_a_step_in_every_visit(tiny: Tiny, tmp_path: Path) -> None:
    """Of FedSSL's; the masks themselves save nothing, and their bits are in memory."""
    flops = {}
    for name, fields in {"changing": {}, "fixed": {"prune_rate": 0.0}, "plain": {"density": 1.0}}.items():
        config = tiny(with_masks(**fields), federation={"rounds": 2})
        _, records = run(config, tmp_path / name)
        steps = sum(upload.num_steps for record in records for upload in record.uploads.values())
        flops[name] = sum(record.flops for record in records)
    assert flops["fixed"] == flops["plain"]
    assert flops["changing"] * steps == flops["plain"] * (steps + 6)  # two rounds of three visits
    peaks = [profile(tiny(with_masks(**one))).peak_memory_bytes for one in ({}, {"density": 1.0})]
    bits = sum(torch.Size(shape).numel() for shape in layers(config).values())
    assert peaks[0] == peaks[1] + bits


@pytest.mark.costs
@pytest.mark.parametrize(
    ("strategy", "more"),
    [
        exhaustive("fedssl", {}),
        exhaustive("lw_fedssl", {}),
        exhaustive("prog_fedssl", {}),
        ("fedssl", {"depth_dropout": {"max_depth": 2}, "quantise": {"upload": 4}}),
        exhaustive("fedssl", {"capacity_tiers": True, "server_optimizer": True, "cast": True}),
    ],
)
def test_a_profile_has_the_bytes_and_flops_of_the_run(
    tiny: Tiny, tmp_path: Path, strategy: str, more: dict[str, Any]
) -> None:
    config = tiny(UNEVEN, with_masks(strategy, more), federation=UNRELIABLE | {"num_clients": 4})
    records, predicted = assert_a_profile_has_the_bytes_and_flops(config, tmp_path)
    assert max(record.peak_memory_bytes for record in records) == predicted.peak_memory_bytes


def test_the_mean_is_over_those_who_hold_an_entry() -> None:
    """Clients of 1, 3 and 2 images; the server has 10 everywhere, the last entry is nobody's."""
    holds = [[True, True, False, False], [True, False, True, False], [False, False, False, False]]
    values = [[1.0, 2, 10, 10], [5.0, 10, 7, 10], [10.0, 10, 10, 10]]
    updates = [
        ClientUpdate(
            n, samples, {"w": torch.tensor(one), "b": torch.tensor([one[0]])}, {}, {"w": torch.tensor(held)}
        )
        for n, (samples, one, held) in enumerate(zip((1, 3, 2), values, holds, strict=True))
    ]
    mean = weighted_mean(iter(updates))
    assert mean["w"].tolist() == [4, 2, 7, 10]
    assert mean["b"].tolist() == [6]


def test_the_server_has_the_naive_mean_of_what_clients_trained(tiny: Tiny) -> None:
    config = tiny(UNEVEN, with_masks(density=0.3), federation={"num_clients": 3, "participants": 2})
    experiment = prepare(config)
    witness, key = Witness(experiment), "encoder.blocks.1.mlp.fc1.weight"
    seen = set()
    for round_index, after in enumerate(witness.aggregated):
        visits = [visit for visit in witness.visits if visit.round_index == round_index]
        masks = [masks_of(visit, config)[key] for visit in visits]
        for row, column in [(i, j) for i in range(64) for j in range(16)]:
            total, weight = 0.0, 0
            for visit, mask in zip(visits, masks, strict=True):
                if mask[row, column]:
                    size = len(experiment.client_indices[visit.client])
                    total, weight = total + size * float(visit.after[key][row, column]), weight + size
            expected = total / weight if weight else float(visits[0].server[key][row, column])
            assert float(after[key][row, column]) == pytest.approx(expected, abs=1e-6)
            assert weight or after[key][row, column] == visits[0].server[key][row, column]
            seen.add(int(sum(mask[row, column] for mask in masks)))
    assert seen == {0, 1, 2}


def test_first_masks_are_each_clients_own_and_follow_from_the_seed() -> None:
    specs = {"w": TensorSpec((16, 16), torch.float32, False)}
    drawn = [
        Wire([FedSpa()], seed).state("block_1", specs, client)["w"].tolist()
        for seed, client in ((0, 0), (0, 1), (1, 0), (0, 0))
    ]
    assert drawn[0] == drawn[3]
    assert drawn[0] != drawn[1]
    assert drawn[0] != drawn[2]


def test_the_wire_of_a_visit_has_no_other_clients_state() -> None:
    specs = {"w": TensorSpec((16, 16), torch.float32, False)}
    server = Wire([FedSpa()])
    for client in range(2):
        server.remember(client, {"w": bitmap_of(torch.arange(256).reshape(16, 16) % 2 == client)})
    own = server.of_client(1, server.states[1])
    packed = server.pack("block_1", {"w": torch.ones(16, 16)}, specs, Way("download", 1), 0)
    assert own.unpack("block_1", packed, specs, Way("download", 1))["w"].reshape(-1).tolist() == 128 * [0, 1]
    assert own.states.keys() == {1}
    with pytest.raises(AssertionError, match="the state of client 0 in a visit of client 1"):
        own.unpack("block_1", packed, specs, Way("download", 0))


def test_nothing_that_one_client_was_sent_is_anywhere_when_the_next_one_comes(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(with_masks("lw_fedssl"), federation={"num_clients": 2})
    with closing(Federation(prepare(config), tmp_path)) as federation:
        train, seen = federation.worker.train, []

        def watched(visit: Any, indices: torch.Tensor) -> Any:
            upload = train(visit, indices)
            assert set(federation.worker._received) == {
                name if visit.client == 0 else f"{name}@{visit.client}" for name in visit.versions
            }
            assert set(visit.groups) == set(visit.versions)  # it held none, not even of a finished block
            seen.append(visit)
            return upload

        federation.worker.train = watched  # type: ignore[method-assign]
        for _ in federation.rounds():
            server = federation.server
            assert server.known() == server._sent == server._encoded == {}
            assert not any(held.any() for held in server.dispatch.versions.held().values())
    assert len(seen) == 12


def test_a_payload_follows_the_mask_though_no_version_rose(tiny: Tiny, tmp_path: Path) -> None:
    """Where the server's values did not change, a client whose mask did is sent its new entries."""
    config = tiny(with_masks(), federation={"rounds": 2})
    with closing(Federation(prepare(config), tmp_path)) as federation:
        next(federation.rounds())
        server, key = federation.server, "encoder.blocks.0.mlp.fc1.weight"
        for client in (0, 1):
            first = decode(server.encode(["block_1"], ["block_1"], client))[f"block_1/{key}"]
            mask = mask_of(server.dispatch.wire.states[client][key], (64, 16))
            assert torch.equal(first, server.state[key][mask])
            server.dispatch.wire.remember(client, {key: bitmap_of(mask.flip(0))})
            second = decode(server.encode(["block_1"], ["block_1"], client))[f"block_1/{key}"]
            assert torch.equal(second, server.state[key][mask.flip(0)])
            assert torch.equal(server.sent("block_1", client)[key], server.state[key] * mask.flip(0))


def test_the_server_keeps_a_finished_block_whole_though_nobody_has_it_whole(tiny: Tiny) -> None:
    witness = Witness(prepare(tiny(with_masks("lw_fedssl", density=0.2))))
    key = "encoder.blocks.0.mlp.fc1.weight"
    finished = witness.final[1][key]
    assert bool(finished.all())
    for visit in witness.visits:
        if visit.stage > 1:
            assert torch.equal(visit.server[key], finished)
            assert 0 < int((visit.before[key] != 0).sum()) < finished.numel() / 2


def test_masks_begin_anew_with_the_group_that_does(tiny: Tiny) -> None:
    """ProgFed discards its heads when a stage begins; the blocks that stay have the masks that they had."""
    config = tiny(with_masks("progfed"), federation={"rounds": 9, "num_clients": 1})
    visits = Witness(prepare(config)).visits
    begins = [after for before, after in pairwise(visits) if after.stage > before.stage]
    assert len(begins) == 2
    for visit in begins:
        groups = {group_of(key) for key in visit.codec_state}
        assert "block_1" in groups
        assert "heads" not in groups
        for key, mask in masks_of(visit, config).items():
            assert torch.equal(visit.before[key], visit.server[key] * mask)


def test_the_gradient_is_the_steps_without_the_mask_and_leaves_the_model_as_it_is(tiny: Tiny) -> None:
    task = local_task(tiny(with_masks(density=1.0)))
    views = tuple(torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(2))
    before = {key: value.clone() for key, value in task.method.state_dict().items()}
    task.masks = {"encoder.norm.weight": torch.zeros(16, dtype=torch.bool)}
    found = gradient_on(build_fabric("32-true", torch.device("cpu")), task, lambda: views)
    assert equal(before, dict(task.method.state_dict()))
    assert all(weight.grad is None for weight in task.trained.values())
    task.step_loss(views).backward()
    assert found.keys() == task.trained.keys()
    assert all(torch.allclose(found[key], weight.grad) for key, weight in task.trained.items())  # type: ignore[arg-type]
    assert found["encoder.norm.weight"].any()


def test_the_batch_of_the_gradient_is_of_the_clients_own_images(tiny: Tiny) -> None:
    class Plain:
        images = torch.arange(100)
        generator = torch.Generator()
        views = staticmethod(lambda images, generator: (images,))

    config, own = tiny(), torch.arange(60, 75)
    (first,) = views_of_one_batch(Plain(), own, config, 3, 1)  # type: ignore[arg-type]
    assert len(first) == 8
    assert set(first.tolist()) <= set(range(60, 75))
    assert len(set(first.tolist())) == 8
    (again,), (other,) = (views_of_one_batch(Plain(), own, config, *key) for key in ((3, 1), (4, 1)))  # type: ignore[arg-type]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


WEIGHT, NORM = "encoder.blocks.0.mlp.fc1.weight", "encoder.norm.weight"


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (
            lambda visit: visit.train_within({WEIGHT: torch.ones(3, 3, dtype=torch.bool)}),
            "train_within: .* of .3, 3.",
        ),
        (lambda visit: visit.train_within({WEIGHT: torch.ones(64, 16)}), "train_within: .*float32; allowed: bool"),
        (lambda visit: visit.train_within({"elsewhere": torch.ones(1) > 0}), "train_within: 'elsewhere'"),
        (
            lambda visit: visit.change_codec_state({WEIGHT: torch.ones(3)}),
            r"change_codec_state.*it is \(128,\), torch.uint8",
        ),
        (lambda visit: visit.change_codec_state({NORM: torch.ones(3)}), "change_codec_state.*no such state"),
    ],
)
def test_a_mask_or_a_state_that_fits_nothing_is_refused(
    tiny: Tiny, hook: Callable[[Any], None], words: str
) -> None:
    task = know_messages(local_task(tiny(with_masks())), tiny(with_masks()))
    with pytest.raises(UserError, match=words):
        hook(VisitHooks(task, 1, False, {}).visits["FedSpa"])


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("strategy", "more"), [("fedssl", {}), ("lw_fedssl", {"quantise": True}), ("prog_fedssl", {})]
)
def test_two_processes_end_with_the_bits_of_none(
    tiny: Tiny, tmp_path: Path, strategy: str, more: dict[str, Any]
) -> None:
    assert_processes_change_nothing(tiny(with_masks(strategy, more), federation=UNRELIABLE), tmp_path)


@pytest.mark.parametrize("stop", [3, *map(exhaustive, (1, 2, 4, 5))])
@pytest.mark.parametrize("strategy", ["fedssl", exhaustive("lw_fedssl")])
def test_a_run_goes_on_from_any_round_with_the_same_bits(
    tiny: Tiny, tmp_path: Path, strategy: str, stop: int
) -> None:
    assert_a_stop_changes_nothing(tiny(with_masks(strategy), federation=UNRELIABLE), tmp_path, stop)


def test_a_mask_whose_upload_was_lost_or_rejected_changes_at_neither_end(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every client that trains begins in the mask that the server has of it, and goes on from that one."""
    accept = Server.accept

    def refuse_some(self: Server, data: bytes, client: int = 0) -> Any:
        if client == 1 and self.dispatch.versions.current["heads"] == 3:
            raise RejectedError("by the test")
        return accept(self, data, client)

    monkeypatch.setattr(Server, "accept", refuse_some)
    config = tiny(with_masks(), federation={"num_clients": 3, "rounds": 8, "dropout_after": 0.3})
    witness, key = Witness(prepare(config)), "encoder.blocks.0.attn.qkv.weight"
    latest: dict[int, tuple[bool, torch.Tensor]] = {}
    fates = set()
    for visit in witness.visits:
        mask = masks_of(visit, config)[key]
        assert torch.equal(visit.before[key], visit.server[key] * mask)
        if visit.client in latest:
            was_used, before = latest[visit.client]
            assert torch.equal(mask, before) != was_used
            fates.add(was_used)
        latest[visit.client] = (visit.returned, mask)
    assert fates == {True, False}
    assert any(record.rejected for record in witness.records)


def test_a_client_that_did_not_keep_its_mask_is_told_so(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(with_masks())
    with closing(Federation(prepare(config), tmp_path)) as federation:
        rounds = federation.rounds()
        next(rounds)
        rmtree(tmp_path / "000001")
        with pytest.raises(
            UserError, match=r"client 1 has not kept what it told the server of \w+ in round 0; allowed"
        ):
            next(rounds)


def test_a_mask_of_another_density_is_rejected(tiny: Tiny) -> None:
    witness = Witness(prepare(tiny(with_masks())))
    visit, name = witness.visits[-1], "stem/state.encoder.stem.patch_embed.proj.weight"
    witness.federation.server.accept(encode(visit.reply), visit.client)
    reply = {**visit.reply, name: torch.zeros_like(visit.reply[name])}
    with pytest.raises(
        RejectedError, match=r"stem cannot be unpacked: a mask of 0 entries; the density is that of"
    ):
        witness.federation.server.accept(encode(reply), visit.client)


def test_a_padding_bit_is_no_entry() -> None:
    specs = {"w": TensorSpec((3, 3), torch.float32, False)}
    state = FedSpa().first_state(specs, torch.Generator())
    FedSpa().check_state(state, specs)
    with pytest.raises(ValueError, match="a mask of 4 entries"):
        FedSpa().check_state({"w": state["w"] | torch.tensor([0, 1], dtype=torch.uint8)}, specs)


def test_bits_of_a_mask_are_those_of_numpy() -> None:
    mask = torch.rand(5, 7) < 0.5
    assert bitmap_of(mask).tolist() == np.packbits(mask.numpy()).tolist()
    assert torch.equal(mask_of(bitmap_of(mask), (5, 7)), mask)


def test_erk_by_hand() -> None:
    """Half of 76 entries by 4 : 15 : 12 were 4.9 of the first layer: it is whole, 34 are left to the others."""
    shares = erk({"small": (2, 2), "long": (3, 12), "square": (6, 6)}, 0.5)
    assert shares == {
        "small": 1.0,
        "long": pytest.approx(34 * 15 / 27 / 36),
        "square": pytest.approx(34 * 12 / 27 / 36),
    }
    assert erk({"one": (2, 2)}, 0.3) == {"one": pytest.approx(0.3)}


@dataclass(frozen=True)
class Weighs(Strategy):
    """A strategy with a mean of its own."""

    def plan(self, stage: int, num_blocks: int) -> Any:
        from fedbench.federation import StagePlan

        return StagePlan.end_to_end(num_blocks)

    def aggregate(self, updates: Any, server: ServerState) -> StateDict:
        return weighted_mean(updates)


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ({"name": "fedssl", "moon": True}, r"fedspa with moon, which lets clients keep entries"),
        ({"name": "fedssl", "fedema": True}, r"fedspa with fedema, which lets clients keep entries"),
        ({"name": "fedssl", "scaffold": True}, r"fedspa with scaffold, which (lets|sends)"),
        ({"name": "fedssl", "l_dawa": True}, r"fedspa with l_dawa, which weighs updates"),
        ({"name": "fedssl", "salf": True}, r"fedspa with salf, which corrects the mean by who trains a block"),
        (
            {"name": "fedssl", "top_k": True},
            r"fedspa with top_k, a codec that chooses what travels.*allowed: codecs",
        ),
        ({"name": "fedssl", "quantise": {"error_feedback": True}}, r"with quantise, a codec that .*sends later"),
        ({"name": f"{__name__}:Weighs"}, r"with strategy\.name=.*Weighs, which takes a mean .*; allowed: without"),
    ],
)
def test_what_it_makes_no_sense_with_is_refused(tiny: Tiny, strategy: dict[str, Any], words: str) -> None:
    optimizer = {"optimizer": {"name": "sgd", "momentum": 0.0}}
    with pytest.raises(UserError, match=words):
        prepare(tiny(optimizer, strategy={**strategy, "fedspa": True}))
    prepare(tiny(optimizer, strategy={**strategy, "fedspa": {"density": 1.0}}))  # where nothing of it is left


def test_clients_that_remember_nothing_cannot_have_masks_that_change(tiny: Tiny, tmp_path: Path) -> None:
    forgetful = {"client_memory": "none"}
    with pytest.raises(
        UserError, match=r"client_memory=none.*allowed: federation\.client_memory=kept, or .*rate=0"
    ):
        prepare(tiny(with_masks(), federation=forgetful))
    fixed = with_masks(prune_rate=0.0)
    kept, records = run(tiny(fixed), tmp_path / "a")
    none, again = run(tiny(fixed, federation=forgetful), tmp_path / "b")
    assert equal(kept, none)
    assert [one.ledger() for one in records] == [one.ledger() for one in again]


@pytest.mark.parametrize("field", [{"error_feedback": True}, {"download_of": "change"}, {"density": 0.0}])
def test_fields_that_personal_payloads_cannot_have_are_refused(tiny: Tiny, field: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"strategy\.fedspa\.{next(iter(field))}"):
        prepare(tiny(with_masks(**field)))


def test_personal_models_are_evaluated_beside_the_global_one(tiny: Tiny, tmp_path: Path) -> None:
    summaries = {}
    for density in (0.2, 1.0):
        config = tiny(with_masks(density=density), evaluation={"protocols": ["knn"]})
        run_cell(prepare(config), tmp_path)
        summaries[density] = RunDirectory(tmp_path / cell_name(prepare(config))).summary()
    assert 0 < summaries[0.2]["personal/knn_top1"] <= 1
    assert summaries[0.2]["personal/knn_top1"] != summaries[0.2]["probe/knn_top1"]
    assert not any(key.startswith("personal/") for key in summaries[1.0])


def test_a_personal_model_is_the_global_one_in_the_clients_mask(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(with_masks(density=0.2))
    with closing(Federation(prepare(config), tmp_path)) as federation:
        list(federation.rounds())
        server = federation.server
        for client in range(3):
            own = server.sent_whole(client)
            assert own.keys() == server.state.keys()
            for key, value in server.state.items():
                state = server.dispatch.wire.states[client]
                mask = mask_of(state[key], value.shape) if key in state else torch.ones(value.shape)
                assert torch.equal(own[key], value * mask.to(value.dtype))
