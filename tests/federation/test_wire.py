"""Codecs between server and clients: who holds what, what it costs, and the same bits whoever trains."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from exhaustive import exhaustive, stress
from safetensors.torch import load_file
from same_run import (
    assert_a_profile_has_the_bytes_and_flops,
    assert_a_stop_changes_nothing,
    assert_processes_change_nothing,
    equal,
    run,
)

from fedbench.config import Config
from fedbench.conformance.witness import Witness
from fedbench.encoders.tensor_groups import StateDict, TensorSpec, by_group, group_of
from fedbench.errors import UserError
from fedbench.federation import Way, load_mechanisms
from fedbench.federation.engines.remote import Holdings
from fedbench.federation.experiment import prepare
from fedbench.federation.federation import Federation
from fedbench.federation.participation import Choose, Participation, participation
from fedbench.federation.payload import decode, encode
from fedbench.federation.plan import StagePlan
from fedbench.federation.protocol import Visit
from fedbench.federation.server import RejectedError
from fedbench.federation.shipment import Shipment
from fedbench.federation.versions import NOTHING
from fedbench.federation.wire import Wire, is_packed
from fedbench.profiling.profile import profile
from fedbench.running.cell import cell_name, run_cell
from fedbench.tracking.run_directory import RunDirectory

Tiny = Callable[..., Config]
TOP_K = {"top_k": {"error_feedback": True}}
CHAIN = {"top_k": {"download": 0.2, "upload": 0.1}, "quantise": {"download": 8, "upload": 4}}
CODECS: list[Any] = [
    {"quantise": True},
    exhaustive({"cast": {"download": "bf16"}}),
    TOP_K,
    exhaustive(CHAIN),
    exhaustive({"random_k": {"upload": 1.0}}),
    {"low_rank": True},
    exhaustive({"quantise": {"download_of": "values"}}),
]
UNRELIABLE = {"num_clients": 5, "participants": 3, "dropout_before": 0.2, "dropout_after": 0.2, "late_clients": 1}


def with_codec(strategy: str, codec: dict[str, Any]) -> dict[str, Any]:
    return {"strategy": {"preset": strategy, **codec} if "@" in strategy else {"name": strategy, **codec}}


@pytest.mark.costs
@pytest.mark.parametrize(
    "strategy", [exhaustive("fedssl"), exhaustive("lw_fedssl@v3"), "lw_fedssl@v4", exhaustive("prog_fedssl")]
)
@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_a_profile_has_the_bytes_and_flops_of_the_run(
    tiny: Tiny, tmp_path: Path, strategy: str, codec: dict[str, Any]
) -> None:
    config = tiny(with_codec(strategy, codec), federation=UNRELIABLE | {"num_clients": 4})
    records, predicted = assert_a_profile_has_the_bytes_and_flops(config, tmp_path)
    assert sum(record.server_flops for record in records) == predicted.server_flops


@pytest.mark.parametrize(
    "neutral",
    [
        {"quantise": {"download": 32, "upload": 32}},
        {"cast": {"download": "fp32", "upload": "fp32"}},
        {"top_k": {"download": 1.0, "upload": 1.0}},
        {"random_k": {"download": 1.0, "upload": 1.0, "error_feedback": True}},
        {"low_rank": {"download": 0, "upload": 0}},
    ],
    ids=str,
)
def test_a_codec_that_leaves_all_as_it_is_changes_no_bit_and_no_byte(
    tiny: Tiny, tmp_path: Path, neutral: dict[str, Any]
) -> None:
    plain, records = run(tiny(with_codec("lw_fedssl@v4", {})), tmp_path / "a")
    state, again = run(tiny(with_codec("lw_fedssl@v4", neutral)), tmp_path / "b")
    assert equal(plain, state)
    assert [one.ledger() for one in records] == [one.ledger() for one in again]
    assert not (tmp_path / "b").exists()  # nor does a client keep anything


IN_PROCESSES = list(product(["lw_fedssl@v3", "lw_fedssl@v4", "fedssl"], [TOP_K, CHAIN, {"low_rank": True}]))


@pytest.mark.parametrize(
    ("strategy", "codec"),
    # each strategy, and each codec, once: the first, the fifth and the last
    [exhaustive(*pair) if place % 4 == 0 else stress(*pair) for place, pair in enumerate(IN_PROCESSES)],
    ids=str,
)
def test_two_processes_end_with_the_bits_of_none(
    tiny: Tiny, tmp_path: Path, strategy: str, codec: dict[str, Any]
) -> None:
    assert_processes_change_nothing(tiny(with_codec(strategy, codec), federation=UNRELIABLE), tmp_path)


@pytest.mark.parametrize("stop", [2, exhaustive(1), exhaustive(3), exhaustive(5)])
@pytest.mark.parametrize("codec", [TOP_K, {"quantise": {"download_of": "values"}}], ids=str)
def test_a_run_goes_on_from_any_round_with_the_same_bits(
    tiny: Tiny, tmp_path: Path, stop: int, codec: dict[str, Any]
) -> None:
    config = tiny(with_codec("lw_fedssl@v4", codec), federation=UNRELIABLE)
    assert_a_stop_changes_nothing(config, tmp_path, stop)


def visits_of(config: Config) -> Iterator[Any]:
    yield from Witness(prepare(config)).visits


def test_who_was_away_is_sent_whole_groups_and_who_was_there_the_change(tiny: Tiny) -> None:
    config = tiny(with_codec("fedssl", {"quantise": True}), federation={"num_clients": 3, "participants": 2})
    last_seen: dict[int, int] = {}
    sent_last = dict[str, int]()
    kinds = set()
    for visit in visits_of(config):
        there = last_seen.get(visit.client) == sent_last.get("round")
        first = visit.round_index == 0
        if visit.round_index > sent_last.get("now", -1):
            sent_last = {"round": sent_last.get("now", -1), "now": visit.round_index}
            there = last_seen.get(visit.client) == sent_last["round"]
        packed = {group for group, part in by_group(visit.payload).items() if is_packed(part)}
        assert (packed != set()) == (there and not first), visit.round_index
        kinds.add(bool(packed))
        last_seen[visit.client] = visit.round_index
    assert kinds == {True, False}


def test_clients_hold_what_was_decoded_and_the_server_knows_it(tiny: Tiny) -> None:
    """Which is off the server's own values by no more than a step of the grid."""
    worst = 0.0
    for visit in visits_of(tiny(with_codec("fedssl", {"quantise": {"download": 4}}))):
        assert all(torch.equal(visit.before[key], visit.sent[key]) for key in visit.sent)
        off = [(visit.sent[key] - visit.server[key]).abs().max().item() for key in visit.sent]
        assert (max(off) > 0) == (visit.round_index > 0)
        worst = max(worst, *off)
    assert worst < 0.2


def test_what_a_download_loses_is_in_the_next_one(tiny: Tiny, tmp_path: Path) -> None:
    """Where the server's values stay, what clients hold comes to them, though each payload has a tenth."""
    config = tiny(with_codec("fedssl", {"top_k": {"download": 0.1, "upload": 1.0}}))
    federation = Federation(prepare(config), tmp_path)
    rounds = federation.rounds()
    next(rounds)
    next(rounds)
    server, dispatch = federation.server, federation.course.dispatch
    goal = {key: value.clone() for key, value in server.state.items() if group_of(key) == "block_1"}
    left = []
    for _ in range(11):
        dispatch.changed(["block_1"], aggregated=True)
        delivery = dispatch.download(0, federation.course.plan)
        server.encode(delivery.groups, delivery.bases)
        sent = server.sent("block_1")
        left.append(sum((goal[key] - sent[key]).abs().sum().item() for key in goal))
    assert left == sorted(left, reverse=True)
    assert left[0] > 0
    assert left[-1] < 1e-5


def test_a_finished_block_is_on_the_server_as_clients_have_it(tiny: Tiny) -> None:
    """What is trained on top of it has seen no other values; nobody is sent what a last payload lost."""
    for visit in visits_of(tiny(with_codec("lw_fedssl@v4", {"top_k": True}))):
        finished = set(range(visit.plan.depth)) - set(visit.plan.trainable)
        keys = [key for key in visit.server if group_of(key) in {f"block_{one + 1}" for one in finished}]
        assert all(torch.equal(visit.server[key], visit.sent[key]) for key in keys)
        newest = [key for key in visit.server if group_of(key) == f"block_{visit.plan.depth}"]
        same = all(torch.equal(visit.server[key], visit.sent[key]) for key in newest)
        assert same == (visit.round_index % 2 == 0)


def test_error_feedback_sends_later_what_was_not_sent(tiny: Tiny) -> None:
    """Of a client's changes all arrives but what it still keeps: nothing is lost for good."""
    arrived: dict[str, StateDict] = {}
    for name, feedback in (("with", True), ("without", False)):
        codec = {"top_k": {"download": 1.0, "upload": 0.05, "error_feedback": feedback}}
        changed, total = StateDict(), StateDict()
        for visit in visits_of(tiny(with_codec("fedssl", codec), federation={"num_clients": 1})):
            for key in visit.upload:
                total[key] = total.get(key, 0) + (visit.after[key] - visit.before[key])
                changed[key] = changed.get(key, 0) + (visit.upload[key] - visit.before[key])
        arrived[name] = {key: (total[key] - changed[key]).abs() for key in total}
    kept, lost = (sum(value.sum().item() for value in one.values()) for one in arrived.values())
    assert kept < lost


@pytest.mark.parametrize("upload", [1.0, 0.999], ids=["as it is", "packed"])
def test_a_loss_on_the_way_down_is_none_of_the_aggregate(tiny: Tiny, upload: float) -> None:
    """The server's values plus the mean change, though clients had been sent a tenth of them."""
    codec = {"top_k": {"download": 0.1, "upload": upload, "download_of": "values"}}
    witness = Witness(prepare(tiny(with_codec("fedssl", codec))))
    key = "encoder.blocks.0.attn.qkv.weight"
    for round_index, after in enumerate(witness.aggregated):
        visits = [visit for visit in witness.visits if visit.round_index == round_index]
        mean = sum(visit.after[key] - visit.before[key] for visit in visits) / len(visits)
        assert torch.allclose(after[key], visits[0].server[key] + mean, atol=1e-4)
        assert not torch.allclose(visits[0].server[key], visits[0].before[key], atol=1e-3)


def test_a_block_is_taken_over_as_clients_have_it_though_nobody_returned_since(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(with_codec("lw_fedssl@v4", {"top_k": True}))

    def lost_in_the_second(config: Config, round_index: int, choose: Choose) -> Participation:
        drawn = participation(config, round_index, choose)
        return replace(drawn, lost_after=frozenset(drawn.drawn)) if round_index == 1 else drawn

    federation = Federation(prepare(config), tmp_path, draw=lost_in_the_second)
    rounds = federation.rounds()
    for _ in range(3):
        next(rounds)
    server = federation.server
    own = {key: value for key, value in server.state.items() if group_of(key) == "block_1"}
    assert equal(own, server.sent("block_1"))


def test_losses_are_kept_of_what_a_visit_does_not_send_and_no_longer_than_a_stage(
    tiny: Tiny, tmp_path: Path
) -> None:
    dropping = {"depth_dropout": {"max_depth": 2}, "top_k": {"error_feedback": True}}
    cases = {"fedssl": {"block_1", "block_2", "block_3"}, "lw_fedssl@v4": {"block_3"}}
    for strategy, blocks in cases.items():
        config = tiny(with_codec(strategy, dropping), federation={"num_clients": 1, "rounds": 12})
        with closing(Federation(prepare(config), tmp_path / strategy)) as federation:
            for _ in federation.rounds():
                pass
            _, kept = federation.worker.states.load(0, 99, 1)
        assert {group_of(key) for key in kept["wire"]["lost"]} - {"stem", "norm", "heads"} == blocks


@pytest.mark.parametrize(
    ("strategy", "codec"),
    [("fedssl", {"low_rank": True}), ("lw_fedssl@v4", TOP_K), ("prog_fedssl", CHAIN)],
    ids=str,
)
def test_checkpoints_are_written_whatever_memory_tensors_share(
    tiny: Tiny, tmp_path: Path, strategy: str, codec: dict[str, Any]
) -> None:
    """What clients were sent may be the server's own tensors, factors need not lie in rows."""
    config = tiny(with_codec(strategy, codec))
    directory = RunDirectory(tmp_path / cell_name(prepare(config)))
    run_cell(prepare(config), tmp_path)
    whole, _ = run(config, tmp_path / "again")
    encoder = load_file(directory.path / "encoder.safetensors")
    assert all(torch.equal(value, whole[f"encoder.{key}"]) for key, value in encoder.items())


def test_a_client_keeps_what_its_payload_lost_and_no_hook_of_a_plugin_sees_it(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(with_codec("fedssl", {"low_rank": True}), federation={"num_clients": 2, "rounds": 2})
    with closing(Federation(prepare(config), tmp_path)) as federation:
        records = list(federation.rounds())
        _, kept = federation.worker.states.load(0, 9, 1)
    assert kept.keys() == {"wire"}
    assert any(value.any() for value in kept["wire"]["lost"].values())
    assert [upload.kept.specs for record in records for upload in record.uploads.values()] == [()] * 4
    assert not any(upload.kept.same_stage for record in records for upload in record.uploads.values())


def test_clients_that_remember_nothing_are_sent_whole_groups(tiny: Tiny) -> None:
    config = tiny(with_codec("fedssl", {"quantise": True}), federation={"client_memory": "none"})
    visits = list(visits_of(config))
    assert not any(is_packed(visit.payload) for visit in visits)
    assert all(is_packed(visit.reply) for visit in visits)
    assert all(torch.equal(visit.before[key], visit.server[key]) for visit in visits for key in visit.server)


def test_values_are_packed_for_everybody(tiny: Tiny) -> None:
    config = tiny(with_codec("fedssl", {"quantise": {"download_of": "values"}}), federation={"participants": 1})
    visits = list(visits_of(config))
    assert all(is_packed(visit.payload) for visit in visits)
    assert all(set(visit.bases.values()) == {NOTHING} for visit in visits)


def test_batchnorms_statistics_and_counter_travel_as_they_are(tiny: Tiny) -> None:
    for visit in visits_of(tiny(with_codec("fedssl", {"quantise": {"download": 1, "upload": 1}}))):
        counters = [key for key in visit.after if key.endswith(("num_batches_tracked", "running_mean"))]
        assert counters
        assert all(torch.equal(visit.reply[key], visit.after[key]) for key in counters)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("heads/indices", torch.tensor([2**30], dtype=torch.int32), "does not fit what is declared"),
        ("heads/values", torch.ones(3), "does not fit what is declared"),
        ("nowhere/values", torch.ones(3), "does not fit what is declared of nowhere"),
        ("heads/more", torch.ones(3), "does not fit what is declared"),
        ("heads/indices", torch.zeros(14, dtype=torch.int64), "does not fit what is declared"),
    ],
)
def test_an_upload_in_another_form_is_rejected(
    tiny: Tiny, tmp_path: Path, key: str, value: torch.Tensor, words: str
) -> None:
    server, sent = an_upload(tiny, tmp_path)
    with pytest.raises(RejectedError, match=words):
        server.accept(encode(sent | {key: value}))


@pytest.mark.parametrize("place", [-1, 2**30])
def test_an_upload_with_places_beyond_its_group_is_rejected(tiny: Tiny, tmp_path: Path, place: int) -> None:
    server, sent = an_upload(tiny, tmp_path)
    server.accept(encode(sent))
    sent["heads/indices"][0] = place
    with pytest.raises(RejectedError, match=r"heads cannot be unpacked: .* places that do not fit"):
        server.accept(encode(sent))


def an_upload(tiny: Tiny, folder: Path) -> tuple[Any, StateDict]:
    config = tiny(with_codec("fedssl", {"top_k": {"upload": 0.01}}))
    witness = Witness(prepare(config))
    sent = witness.visits[-1].reply
    return witness.federation.server, decode(encode(sent))


def test_a_chain_packs_in_its_order_and_unpacks_in_the_other() -> None:
    """Entries are chosen before their numbers are shortened, in whatever order the mechanisms stand."""
    wire = Wire(load_mechanisms({"name": "fedssl", "top_k": {"upload": 0.5}, "quantise": {"upload": 8}}))
    specs = {"w": TensorSpec((4,), torch.float32, False)}
    travelling = wire.specs("norm", specs, Way("upload"))
    assert {name: spec.shape for name, spec in travelling.items()} == {
        "norm/bitmap": (1,),
        "norm/codes": (2,),
        "norm/grids": (1, 2),
    }
    packed = wire.pack("norm", {"w": torch.tensor([0.1, -3.0, 0.0, 5.0])}, specs, Way("upload"), 0)
    assert wire.unpack("norm", packed, specs, Way("upload"))["w"].tolist() == [0, -3, 0, 5]


def test_draws_differ_by_group_client_and_round() -> None:
    wire = Wire(load_mechanisms({"name": "fedssl", "quantise": {"upload": 1}}), seed=3)
    specs = {"w": TensorSpec((64,), torch.float32, False)}
    values = {"w": torch.linspace(0, 1, 64)}

    def codes(group: str, *when: int) -> torch.Tensor:
        return wire.pack(group, values, specs, Way("upload"), *when)[f"{group}/codes"]

    first = codes("norm", 0, 0)
    assert torch.equal(first, codes("norm", 0, 0))
    assert not any(torch.equal(first, other) for other in (codes("norm", 0, 1), codes("norm", 1, 0)))
    assert not torch.equal(first, codes("heads", 0, 0))


LIAR = """
from dataclasses import dataclass

import torch

from fedbench.federation import Codec


@dataclass(frozen=True)
class Mine(Codec):
    def wire(self, specs, way):
        return {key: spec._replace(dtype=torch.float16)                for key, spec in specs.items()}

    def pack(self, values, way, draw):
        PACK

    def unpack(self, packed, specs, way):
        UNPACK
"""
PACK = "return {k: v.half() for k, v in values.items()}"
UNPACK = "return {k: packed[k].to(spec.dtype) for k, spec in specs.items()}"


@pytest.mark.parametrize(
    ("pack", "unpack", "told"),
    [
        (PACK, UNPACK, set()),
        (
            "return {k: v[v != 0].half() for k, v in values.items()}",
            UNPACK,
            {"sizes follow from shapes"},
        ),
        (PACK, f"{UNPACK[:-1]} if k != 'bias'}}", {"nothing is lost"}),
        (
            PACK,
            UNPACK.replace("to(spec.dtype)", "to(spec.dtype) * (1 + torch.rand(()))"),
            {"every reader gets the same"},
        ),
        (PACK.replace("v.half()", "(v * (1 + torch.rand(v.shape))).half()"), UNPACK, {"chance is only the draw"}),
        (PACK.replace("v.half()", "v.mul_(2).half()"), UNPACK, {"what is packed stays"}),
        (
            PACK,
            "return {k: packed[k].to(s.dtype) + (k == 'bias') for k, s in specs.items()}",
            {"no change stays none"},
        ),
    ],
)
def test_check_tells_a_codec_that_lies(tmp_path: Path, pack: str, unpack: str, told: set[str]) -> None:
    """Of its size, loses a tensor, reads twice and gets two values, draws elsewhere, changes what it is given."""
    from fedbench.conformance.report import check_codec

    path = tmp_path / "mine.py"
    path.write_text(LIAR.replace("UNPACK", unpack).replace("PACK", pack))
    found = {name for _, name, finding in check_codec("mechanisms", str(path), {}) if finding is not None}
    assert found == told


def test_a_run_ends_where_a_codec_packs_what_it_did_not_declare(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    pack = "return {k: v[v != 0].half() for k, v in values.items()}"
    path.write_text(LIAR.replace("UNPACK", UNPACK).replace("PACK", pack))
    with pytest.raises(UserError, match=r"Mine\.pack makes '.*': \(\d+,\), torch\.float16; declared: \("):
        run(tiny(with_codec("fedssl", {str(path): {}})), tmp_path / "run")


def test_two_codecs_that_would_call_two_tensors_by_one_name_are_refused(tiny: Tiny) -> None:
    config = tiny(with_codec("fedssl", {"top_k": {"upload": 0.01}, "random_k": {"upload": 0.01}}))
    with pytest.raises(UserError, match=r"makes 'indices', as a codec before it does"):
        profile(config)


@pytest.mark.costs
def test_the_server_packs_a_version_once_and_unpacks_what_clients_then_have(tiny: Tiny, tmp_path: Path) -> None:
    """By hand: two power iterations of two products, and the product of the factors, are 10 m n r FLOPs."""
    config = tiny(with_codec("fedssl", {"low_rank": {"download": 1, "upload": 0}}))
    state, records = run(config, tmp_path)
    parameters = {
        key: v for key, v in state.items() if v.is_floating_point() and "running" not in key and v.ndim > 1
    }
    sizes = [(len(v), v.numel() // len(v)) for v in parameters.values()]
    assert {record.server_flops for record in records[1:]} == {sum(10 * m * n for m, n in sizes if m + n < m * n)}
    assert records[0].server_flops == 0  # the first version is sent whole


def test_a_worker_is_given_what_a_change_is_of_unless_it_has_that() -> None:
    """Which is no traffic of the client's: it has it."""
    holdings, nothing = Holdings(), Shipment(())
    plan = StagePlan.end_to_end(1)

    def visit(version: int, base: int) -> Visit:
        return Visit(0, version, 1, plan, ("norm",), {"norm": version}, nothing, None, {"norm": base})

    assert holdings.lacking(visit(3, 2)).groups == (("norm", 3),)
    assert holdings.lacking(visit(4, 3)).groups == ()
    assert holdings.lacking(visit(6, 5)).groups == (("norm", 6),)
    assert Holdings().lacking(visit(3, NOTHING)).groups == ()
