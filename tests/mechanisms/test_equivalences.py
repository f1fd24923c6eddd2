"""Switched on but without effect, a mechanism leaves the result as it was, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exhaustive import all_but, exhaustive

from fedbench.config import Config
from fedbench.conformance.witness import Witness
from fedbench.encoders.tensor_groups import StateDict
from fedbench.errors import UserError
from fedbench.federation.experiment import prepare

Tiny = Callable[..., Config]
WEIGHTLESS: list[dict[str, Any]] = [
    {"proximal": {"mu": 0}},
    {"alignment": {"alpha": 0}},
    {"moon": {"mu": 0}},
    {"feddecorr": {"beta": 0}},
    {"fedu2": {"weight": 0}},
    {"depth_dropout": {"max_depth": 3}},
]


def result(config: Config) -> tuple[StateDict, list[int], list[int]]:
    witness = Witness(prepare(config))
    downloads = [record.download_bytes for record in witness.records]
    return witness.final[-1], downloads, [record.upload_bytes for record in witness.records]


def assert_same(one: Config, other: Config) -> None:
    (state, *traffic), (reference, *expected) = result(one), result(other)
    assert traffic == expected
    assert state.keys() == reference.keys()
    assert all(torch.equal(state[key], reference[key]) for key in state)


@pytest.mark.parametrize("mechanism", WEIGHTLESS, ids=lambda mechanism: next(iter(mechanism)))
@pytest.mark.parametrize("name", all_but("lw_fedssl", ["fedssl", "lw_fedssl"]))
def test_a_mechanism_without_weight_is_no_mechanism(tiny: Tiny, name: str, mechanism: dict[str, Any]) -> None:
    assert_same(tiny(strategy={"name": name, **mechanism}), tiny(strategy=name))


def test_lw_fedssl_over_all_blocks_at_once_is_fedssl(tiny: Tiny) -> None:
    assert_same(tiny(strategy={"name": "lw_fedssl", "blocks_per_stage": 3}), tiny(strategy="fedssl"))


def test_calibration_of_no_steps_changes_nothing_on_the_server(tiny: Tiny) -> None:
    """Its share is held out all the same; the traffic is that of a run without calibration."""
    config = tiny(strategy={"name": "lw_fedssl", "calibration": {"epochs": 0}})
    witness, without = Witness(prepare(config)), Witness(prepare(tiny(strategy="lw_fedssl")))
    for aggregated, final in zip(witness.aggregated, witness.final, strict=True):
        assert all(torch.equal(aggregated[key], final[key]) for key in final)
    assert [r.download_bytes for r in witness.records] == [r.download_bytes for r in without.records]


def test_the_clients_and_the_server_share_no_sample(tiny: Tiny) -> None:
    experiment = prepare(tiny(strategy={"name": "fedssl", "calibration": {"share": 0.2}}))
    clients = torch.cat(experiment.client_indices)
    assert len(experiment.auxiliary["Calibration"]) == 12
    assert len(clients) == len(set(clients.tolist())) == 48
    rest = sorted(set(range(60)) - set(clients.tolist()))
    assert torch.equal(experiment.auxiliary["Calibration"], experiment.dataset.train_images[rest])


@pytest.mark.parametrize("split", [{"name": "iid"}, {"name": "dirichlet", "beta": 0.3}])
def test_a_client_keeps_its_other_images_when_the_server_takes_some(tiny: Tiny, split: dict[str, object]) -> None:
    data = {"data": {"partition": split}}
    alone = prepare(tiny(data, strategy="fedssl"))
    shared = prepare(tiny(data, strategy={"name": "fedssl", "calibration": {"share": 0.2}}))
    assert sum(map(len, alone.client_indices)) - sum(map(len, shared.client_indices)) == 12
    for whole, rest in zip(alone.client_indices, shared.client_indices, strict=True):
        assert set(rest.tolist()) <= set(whole.tolist())


def test_every_client_keeps_enough_images_however_many_the_server_takes(tiny: Tiny) -> None:
    strategy = {"name": "fedssl", "calibration": {"share": 0.9}}
    data = {"data": {"partition": {"name": "dirichlet", "beta": 0.3}}}
    assert min(len(rest) for rest in prepare(tiny(data, strategy=strategy)).client_indices) == 2
    strategy = {"name": "fedssl", "calibration": {"share": 0.95}}
    with pytest.raises(
        UserError,
        match=r"Calibration: a share of 0\.95 for the server is 57 of 60 images; allowed: 2 to 54 images",
    ):
        prepare(tiny(data, strategy=strategy))


def test_calibration_on_another_data_set_leaves_the_pool_whole(tiny: Tiny, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "other.npz"
    np.savez(path, images=rng.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8), labels=np.arange(20) % 2)
    other = {"name": "npz", "path": str(path)}
    experiment = prepare(tiny(strategy={"name": "fedssl", "calibration": {"data": other}}))
    assert sum(map(len, experiment.client_indices)) == 60
    assert len(experiment.auxiliary["Calibration"]) == 16


def test_calibration_moves_every_block_and_so_every_block_is_sent(tiny: Tiny) -> None:
    witness = Witness(prepare(tiny(strategy="lw_fedssl@v3")))
    for aggregated, final in zip(witness.aggregated, witness.final, strict=True):
        moved = [key for key in final if "attn.proj.weight" in key]
        assert not any(torch.equal(aggregated[key], final[key]) for key in moved)
    sent = [{key.split(".")[2] for key in visit.payload if ".blocks." in key} for visit in witness.visits]
    assert sent[-1] == {"0", "1", "2"}


def test_copy_previous_starts_a_block_as_the_one_before_it(tiny: Tiny) -> None:
    witness = Witness(prepare(tiny(strategy={"name": "lw_fedssl", "init": "copy_previous"})))
    first = next(visit for visit in witness.visits if visit.stage == 2)
    keys = [key for key in first.server if key.startswith("encoder.blocks.1.")]
    assert keys
    assert all(torch.equal(first.server[key], first.server[key.replace("s.1.", "s.0.", 1)]) for key in keys)


@pytest.mark.costs
def test_dropped_blocks_are_neither_run_nor_downloaded(tiny: Tiny) -> None:
    config = tiny(strategy={"name": "lw_fedssl", "depth_dropout": {"max_depth": 2}})
    witness, whole = Witness(prepare(config)), Witness(prepare(tiny(strategy="lw_fedssl")))
    needed = [sum(group.startswith("block") for group in visit.needed) for visit in witness.visits]
    assert max(needed) == 2
    for thin, full in zip(witness.records, whole.records, strict=True):
        assert (thin.flops < full.flops) == (thin.stage == 3)
        assert thin.flops <= full.flops


def test_moon_keeps_a_clients_model_from_visit_to_visit_and_not_over_a_stage(tiny: Tiny) -> None:
    witness = Witness(prepare(tiny(strategy={"name": "lw_fedssl", "moon": True})))
    has_term = [(record.mean("added_loss") or 0) > 0 for record in witness.records]
    assert has_term == [False, True, False, True, False, True]


def test_a_mechanism_that_cannot_work_is_refused(tiny: Tiny) -> None:
    resnet = {"encoder": {"name": "resnet18", "depth": 4}}
    with pytest.raises(UserError, match=r"strategy\.depth_dropout: .*resnet18.*allowed: .*vit"):
        prepare(tiny(resnet, strategy={"name": "lw_fedssl", "depth_dropout": True}))
    with pytest.raises(UserError, match=r"strategy\.proximal\.nu: unknown key; allowed: mu"):
        prepare(tiny(strategy={"name": "fedssl", "proximal": {"nu": 1}}))
    with pytest.raises(UserError, match=r"strategy\.proximal=3; allowed: its fields, true, false or null"):
        prepare(tiny(strategy={"name": "fedssl", "proximal": 3}))


@pytest.mark.costs
@pytest.mark.parametrize("strategy", [exhaustive("fedssl"), "prog_fedssl"])
def test_trained_blocks_that_a_client_does_not_run_are_neither_trained_nor_exchanged(
    tiny: Tiny, strategy: str
) -> None:
    dropout = {"depth_dropout": {"max_depth": 2}, "proximal": {"mu": 0.1}}
    witness = Witness(prepare(tiny(strategy={"name": strategy, **dropout})))
    whole = Witness(prepare(tiny(strategy=strategy)))
    skipped = set()
    for visit in witness.visits:
        assert len(visit.plan.run) == min(2, visit.plan.depth)
        assert visit.plan.depth - 1 in visit.plan.run  # the newest block
        blocks = {
            f"encoder.blocks.{number}." for number in range(visit.plan.depth) if number not in visit.plan.run
        }
        idle = {key for key in visit.after if any(key.startswith(block) for block in blocks)}
        skipped |= {block for block in blocks if visit.client == 0}
        assert not idle & (visit.upload.keys() | visit.payload.keys())
        assert all(torch.equal(visit.before[key], visit.after[key]) for key in idle)
    assert skipped == {"encoder.blocks.0.", "encoder.blocks.1."}
    for thin, full in zip(witness.records[-2:], whole.records[-2:], strict=True):
        assert thin.flops < full.flops
        assert thin.upload_bytes < full.upload_bytes
        assert thin.download_bytes < full.download_bytes


def test_what_a_stage_adds_is_run_by_everybody_however_many_blocks_that_are(tiny: Tiny) -> None:
    """LW-FedSSL freezes them for good when their stage ends."""
    dropout = {"name": "lw_fedssl", "blocks_per_stage": 2, "depth_dropout": {"max_depth": 1}}
    witness = Witness(prepare(tiny(strategy=dropout)))
    assert {(visit.stage, visit.plan.run) for visit in witness.visits} == {(1, (0, 1)), (2, (2,))}


def test_layer_wise_over_all_blocks_at_once_drops_what_fedssl_drops(tiny: Tiny) -> None:
    dropout = {"depth_dropout": {"max_depth": 2}}
    at_once = {"name": "lw_fedssl", "blocks_per_stage": 3, **dropout}
    assert_same(tiny(strategy=at_once), tiny(strategy={"name": "fedssl", **dropout}))


def test_an_entry_is_averaged_over_those_who_sent_it() -> None:
    from fedbench.federation.strategy import ClientUpdate, weighted_mean

    ones = {"a": torch.tensor([1.0]), "b": torch.tensor([10.0])}
    updates = [ClientUpdate(0, 1, ones), ClientUpdate(1, 3, {"a": torch.tensor([5.0])})]
    mean = weighted_mean(updates)
    assert mean["a"].item() == 4.0
    assert mean["b"].item() == 10.0


@pytest.mark.parametrize("strategy", [exhaustive("fedssl"), exhaustive("prog_fedssl"), "lw_fedssl"])
def test_depth_dropout_of_no_block_is_none(tiny: Tiny, strategy: str) -> None:
    dropout = {"name": strategy, "depth_dropout": {"max_depth": 3}}
    assert_same(tiny(strategy=dropout), tiny(strategy=strategy))
