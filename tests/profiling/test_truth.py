"""One truth: what the profile predicts is what a real run counts, to the byte and to the FLOP."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from exhaustive import exhaustive
from ssl_methods import fits, needed, pairs
from tiny_config import UNEVEN

from fedbench.budgets import parse_budgets
from fedbench.config import Config
from fedbench.conformance.witness import Witness
from fedbench.errors import AccountingError, UserError
from fedbench.federation import GrowingStrategy, StagePlan, Strategy
from fedbench.federation import shipment as shipment_module
from fedbench.federation.experiment import prepare
from fedbench.federation.record import LEDGER_COLUMNS, RoundRecord
from fedbench.federation.server_rehearsal import RehearsedTraining
from fedbench.profiling import Profile, profile
from fedbench.profiling.budget import verdicts
from fedbench.profiling.profile import PAPER_RULES

pytestmark = pytest.mark.costs
Tiny = Callable[..., Config]
STRATEGIES = ["fedssl", "prog_fedssl", "lw_fedssl@v3", "lw_fedssl@v4"]
UNRELIABLE = {
    "num_clients": 6,
    "participants": 3,
    "dropout_before": 0.2,
    "dropout_after": 0.3,
    "late_clients": 1,
    "late_round": 3,
}

GATED = {"encoder": {"transforms": [{"name": "gates", "dense": True}]}, "ssl": "gated_vicreg"}
SLIM = {"encoder": {"transforms": ["slim_gates"]}}
LORA = {"encoder": {"transforms": ["lora"]}}


@dataclass(frozen=True)
class UploadsMore(GrowingStrategy):
    """Sends what it did not train, and so did not change."""

    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        newest = self.newest_blocks(stage, num_blocks)
        return StagePlan(newest.stop, trainable=newest, upload=range(newest.stop))


@dataclass(frozen=True)
class TrainsTheFirstAndTheLast(Strategy):
    """Which of the blocks that are run is trained depends on which are run."""

    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        ends = (0, num_blocks - 1)
        return StagePlan(num_blocks, trainable=ends, upload=ends)


def predicted(one: Profile) -> dict[str, float]:
    parts = {part: sum(stage.download[part] for stage in one.stages) for part in ("hand_over", "catch_up")}
    return {
        "download": one.total("download_bytes", "step"),
        "upload": one.total("upload_bytes", "step"),
        "flops": one.total("flops", "step"),
        "local_steps": sum(stage.local_steps for stage in one.stages),
        "memory": one.peak_memory_bytes,
        "server_flops": one.server_flops,
        "server_steps": sum(stage.server_steps for stage in one.stages),
        "server_memory": one.server_peak_memory_bytes,
        "total_flops": one.total_flops,
        **parts,
    }


def counted(config: Config) -> dict[str, float]:
    records = Witness(prepare(config)).records
    clients = config.federation.num_clients
    return {
        "download": sum(record.download_bytes for record in records) / clients,
        "upload": sum(record.upload_bytes for record in records) / clients,
        "flops": sum(record.flops for record in records) / clients,
        "local_steps": sum(up.num_steps for record in records for up in record.uploads.values()) / clients,
        "memory": max(record.peak_memory_bytes for record in records),
        "server_flops": sum(record.server_flops for record in records),
        "server_steps": sum(record.server_steps for record in records),
        "server_memory": max(record.server_peak_memory_bytes for record in records),
        "total_flops": sum(record.flops + record.server_flops for record in records),
        "hand_over": sum(record.hand_over_bytes for record in records) / clients,
        "catch_up": sum(record.catch_up_bytes for record in records) / clients,
    }


@pytest.mark.parametrize(("strategy", "ssl"), pairs(STRATEGIES, "lw_fedssl@v4"))
def test_every_strategy_and_ssl_method(tiny: Tiny, strategy: str, ssl: str) -> None:
    if not fits((strategy, ssl)):
        pytest.skip(f"{strategy} refuses {ssl}")
    config = tiny(needed(ssl), strategy=strategy, ssl=ssl)
    assert predicted(profile(config)) == counted(config)


@pytest.mark.parametrize(
    "trees",
    [
        exhaustive({"strategy": "lw_fedssl@v4", "federation": UNRELIABLE}),
        exhaustive({"strategy": "lw_fedssl@v3", "federation": {"client_memory": "none"}}),
        exhaustive({"strategy": {"name": "lw_fedssl@v4", "moon": True}}),
        exhaustive({"strategy": {"name": "lw_fedssl", "depth_dropout": {"max_depth": 2}}}),
        {"strategy": {"name": "prog_fedssl", "depth_dropout": {"max_depth": 2}}, "federation": UNRELIABLE},
        {"strategy": {"name": "fedssl", "depth_dropout": {"max_depth": 2}, "calibration": {}}, **UNEVEN},
        exhaustive(
            {
                "strategy": {
                    "name": "prog_fedssl",
                    "depth_dropout": {"max_depth": 2},
                    "moon": True,
                    "alignment": True,
                }
            }
        ),
        exhaustive({"strategy": {"name": "fedssl", "proximal": {"mu": 0.1}}}),
        exhaustive({"strategy": f"{__name__}:UploadsMore"}),
        {"strategy": {"name": f"{__name__}:TrainsTheFirstAndTheLast", "depth_dropout": {"max_depth": 2}}},
        exhaustive({"strategy": "lw_fedssl@v4", "federation": {"dropout_after": 0.6}}),
        {
            "strategy": {"name": "prog_fedssl", "calibration": {"epochs": 3, "share": 0.2}},
            "federation": UNRELIABLE,
        },
        exhaustive({"strategy": {"name": "lw_fedssl", "blocks_per_stage": 2}}),
        exhaustive({"strategy": "lw_fedssl@v3", "encoder": {"transforms": ["shared_mlp"]}}),
        exhaustive({"strategy": "lw_fedssl@v4", "federation": UNRELIABLE, **LORA}),
        exhaustive(
            {
                "strategy": {"name": "prog_fedssl", "depth_dropout": {"max_depth": 2}},
                "encoder": {"transforms": ["lora"]},
            }
        ),
        exhaustive({"strategy": {"name": "lw_fedssl@v3", "dp_fedavg": True}, "federation": UNRELIABLE}),
        exhaustive({"strategy": {"name": f"{__name__}:UploadsMore", "dp_fedavg": True}}),
        {"strategy": "lw_fedssl@v3", "encoder": {"transforms": ["gates"]}, "federation": UNRELIABLE},
        exhaustive({"strategy": "lw_fedssl@v3", "encoder": {"transforms": ["two_towers"]}}),
        exhaustive({"strategy": {"name": "prog_fedssl", "depth_dropout": {"max_depth": 2}}, **GATED}),
        exhaustive({"strategy": "lw_fedssl@v3", **GATED}),
        exhaustive({"strategy": {"name": "lw_fedssl", "fedu2": True}}),
        exhaustive({"strategy": {"name": "lw_fedssl@v3", "gated_tiers": True}, **SLIM, "federation": UNRELIABLE}),
        exhaustive({"strategy": "lw_fedssl@v3", "encoder": {"transforms": ["cola"]}}),
        exhaustive({"strategy": "prog_fedssl", "encoder": {"transforms": ["cola", "shared_mlp"]}}),
        exhaustive(
            {"strategy": "lw_fedssl@v3", "encoder": {"name": "cnn", "width": 8}, "federation": {"rounds": 4}}
        ),
        exhaustive(
            {
                "strategy": "lw_fedssl@v3",
                "encoder": {"name": "resnet18", "depth": 4},
                "data": {"num_train": 16},
                "federation": {"rounds": 4, "num_clients": 2},
            }
        ),
        UNEVEN,
    ],
)
def test_whatever_happens_to_the_clients(tiny: Tiny, trees: dict[str, Any]) -> None:
    config = tiny(trees)
    assert predicted(profile(config)) == pytest.approx(counted(config), rel=1e-12)


def test_the_servers_work_is_not_nothing(tiny: Tiny) -> None:
    """Six images in batches of six (of eight asked for), three epochs, six rounds: 18 steps of all blocks."""
    one = profile(tiny(strategy={"name": "fedssl", "calibration": {"epochs": 3}}))
    assert one.stages[0].server_steps == 18
    whole = profile(tiny(strategy="fedssl", optimizer={"batch_size": 6}, federation={"num_clients": 1}))
    assert one.server_flops == 18 * whole.stages[0].flops_per_step
    assert one.server_peak_memory_bytes == whole.peak_memory_bytes
    assert one.total_flops == 3 * one.total("flops", "step") + one.server_flops


def test_the_size_of_the_servers_share_follows_from_what_is_left(tiny: Tiny) -> None:
    config = tiny(strategy={"name": "fedssl", "calibration": {"share": 0.2}})
    assert profile(config, [16, 16, 16], trace=False).sizes.server == {"Calibration": 12}
    assert profile(config, 16, trace=False).sizes.server == {"Calibration": 12}
    assert profile(config, 16, trace=False, server_samples={"Calibration": 7}).sizes.server == {"Calibration": 7}
    assert profile(tiny(), 16, trace=False).sizes.server == {}


def test_the_ledger_lists_every_byte_once(tiny: Tiny) -> None:
    witness = Witness(prepare(tiny(strategy="lw_fedssl@v4", federation=UNRELIABLE)))
    column = {name: number for number, name in enumerate(LEDGER_COLUMNS)}
    for record in witness.records:
        lines = record.ledger()
        for direction, total in (("download", record.download_bytes), ("upload", record.upload_bytes)):
            mine = [line for line in lines if line[column["direction"]] == direction]
            sums = [sum(line[column[name]] for line in mine) for name in ("value_bytes", "framing_bytes")]  # type: ignore[misc]
            assert sum(sums) == total
    reasons = {line[column["reason"]] for record in witness.records for line in record.ledger()}
    assert reasons == {"round", "hand_over", "catch_up"}
    sent = [len(visit.upload) for visit in witness.visits]
    assert all(sent)


@pytest.mark.parametrize(
    "strategy", ["prog_fedssl", "lw_fedssl@v4", exhaustive("fedssl"), exhaustive("lw_fedssl@v3")]
)
def test_a_runs_ledger_counted_by_the_papers_rules_is_the_profiles_figure(tiny: Tiny, strategy: Any) -> None:
    config = tiny(strategy=strategy)
    shipments = [shipment for record in Witness(prepare(config)).records for shipment in record.shipments]
    one = profile(config, trace=False)
    for rule in PAPER_RULES:
        counted = sum(shipment.counted(rule) for shipment in shipments)
        predicted = one.total("download_bytes", rule) + one.total("upload_bytes", rule)
        assert counted / config.federation.num_clients == pytest.approx(predicted, rel=1e-12)


def test_a_count_that_differs_stops_the_run_with_both_figures(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    framing = shipment_module._framing

    def short(specs: Any) -> dict[str, int]:
        return {**framing(specs), "envelope": 0}

    monkeypatch.setattr(shipment_module, "_framing", short)
    with pytest.raises(
        AccountingError, match=r"round 0, client 0, download: \d+ bytes were declared, \d+ serialised"
    ):
        Witness(prepare(tiny()))


def test_a_decoder_that_counts_otherwise_stops_the_run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedbench.federation.client.received_bytes", lambda data, state: len(data) - 1)
    with pytest.raises(AccountingError, match="received; allowed: three equal counts"):
        Witness(prepare(tiny()))


def test_a_record_without_a_gpu_says_so(tiny: Tiny) -> None:
    record: RoundRecord = Witness(prepare(tiny())).records[0]
    flat = record.to_dict()
    for name in ("max_allocated_bytes", "max_reserved_bytes", "process_bytes"):
        assert flat[f"client/cuda_{name}"] is None


def test_a_server_step_that_cannot_be_rehearsed_is_named() -> None:
    server = RehearsedTraining("Mine", True, StagePlan.end_to_end(2), (0, 1), [])
    with pytest.raises(
        UserError, match=r"Mine reads the server's 'server'; allowed .* plan, finished, train, edit"
    ):
        server.server  # noqa: B018
    with pytest.raises(UserError, match="the mechanism has no images"):
        RehearsedTraining("Mine", False, StagePlan.end_to_end(2), (0, 1), []).train(1)


def test_a_budget_may_count_everybody_and_the_server(tiny: Tiny) -> None:
    one = profile(tiny(strategy={"name": "fedssl", "calibration": {"epochs": 3}}))
    budgets = parse_budgets([f"total_flops={one.total_flops}"])
    (fits,) = verdicts(one, budgets)
    assert (fits.needed, fits.breaks) == (one.total_flops, "")
    (breaks,) = verdicts(one, {"total_flops": one.total_flops - 1})
    share = (one.total_flops - one.server_flops) / one.total_flops
    assert breaks.breaks == f"clients ({share:.0%} of it)"
    with pytest.raises(UserError, match="total_flops=1GB: '1GB' is no amount"):
        parse_budgets(["total_flops=1GB"])
