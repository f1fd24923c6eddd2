"""Deliberate faults in strategies, loop, payload and freezing: each is caught by the check that names it."""

import itertools
import sys
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedbench.config import Config
from fedbench.conformance import CHECKS, Trial
from fedbench.encoders.tensor_groups import Specs, StateDict, group_of, select
from fedbench.errors import AccountingError
from fedbench.federation import (
    ClientUpdate,
    GrowingStrategy,
    LocalStep,
    ServerState,
    StagePlan,
    Strategy,
    weighted_mean,
)
from fedbench.federation import client as client_module
from fedbench.federation.client import Worker
from fedbench.federation.dispatch import Delivery, Dispatch
from fedbench.federation.payload import decode
from fedbench.federation.protocol import Visit
from fedbench.federation.record import RoundRecord
from fedbench.federation.server import Server
from fedbench.federation.shipment import declare
from fedbench.training import local as local_module
from fedbench.training.local import LocalTask

Tiny = Callable[..., Config]


def finding(config: Config, check: str) -> str:
    return str(CHECKS[check](Trial(config)) or "")


@dataclass(frozen=True)
class TrainsWhatItNeverUploads(GrowingStrategy):
    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        newest = self.newest_blocks(stage, num_blocks)
        return StagePlan(newest.stop, trainable=range(newest.stop), upload=newest)


@dataclass(frozen=True)
class UploadsWhatItNeverTrains(GrowingStrategy):
    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        newest = self.newest_blocks(stage, num_blocks)
        return StagePlan(newest.stop, trainable=newest, upload=range(newest.stop))


@dataclass(frozen=True)
class ForgetsTheLastBlock(Strategy):
    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        return StagePlan(num_blocks, trainable=range(num_blocks - 1), upload=range(num_blocks - 1))


@dataclass(frozen=True)
class Whole(Strategy):
    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        return StagePlan(num_blocks, trainable=range(num_blocks), upload=range(num_blocks))


@dataclass(frozen=True)
class DividesByClients(Whole):
    def aggregate(self, updates: Iterable[ClientUpdate], server: ServerState) -> StateDict:
        received = list(updates)
        keys = received[0].state if received else {}
        sums = {key: torch.stack([u.state[key].float() * u.num_samples for u in received]) for key in keys}
        return {key: values.double().mean(0).to(keys[key].dtype) for key, values in sums.items()}


@dataclass(frozen=True)
class NeedsAClient(Whole):
    def aggregate(self, updates: Iterable[ClientUpdate], server: ServerState) -> StateDict:
        return weighted_mean([first, *updates]) if (first := next(iter(updates))) else {}


@dataclass(frozen=True)
class TakesTheLast(Whole):
    def aggregate(self, updates: Iterable[ClientUpdate], server: ServerState) -> StateDict:
        *_, last = [{}, *(update.state for update in updates)]
        return last


@dataclass(frozen=True)
class ShrinksInPassing(Whole):
    def local_loss(self, step: LocalStep) -> Tensor | None:
        for weight in step.trained.values():
            weight.data.mul_(0.9)
        return None


@dataclass(frozen=True)
class ReferenceNeverDetached(Whole):
    def local_loss(self, step: LocalStep) -> Tensor | None:
        return torch.stack([(weight - weight).square().sum() for weight in step.trained.values()]).sum()


@dataclass(frozen=True)
class DetachedTerm(Whole):
    def local_loss(self, step: LocalStep) -> Tensor | None:
        pulls = [(w - step.received[key]).square().sum() for key, w in step.trained.items()]
        return torch.stack(pulls).sum().detach()


@pytest.mark.parametrize(
    ("faulty", "check", "words"),
    [
        (TrainsWhatItNeverUploads, "upload is what was trained", "trained, not uploaded: encoder.blocks.0"),
        (UploadsWhatItNeverTrains, "upload is what was trained", "uploaded, not trained: encoder.blocks.0"),
        (ForgetsTheLastBlock, "plan is coherent", "never trained: [2]"),
        (DividesByClients, "aggregation weights sum to one", "differs"),
        (NeedsAClient, "aggregation survives few clients", "StopIteration"),
        (TakesTheLast, "aggregation ignores the order", "differ"),
        (ShrinksInPassing, "added loss changes no weight", "ShrinksInPassing.local_loss"),
        (ReferenceNeverDetached, "added loss has a gradient", "gradient is zero"),
        (DetachedTerm, "added loss has a gradient", "detached"),
    ],
)
def test_a_faulty_strategy_is_caught(tiny: Tiny, faulty: type[Strategy], check: str, words: str) -> None:
    assert words in finding(tiny(strategy=f"{__name__}:{faulty.__name__}"), check)


def test_frozen_parameters_that_train_are_caught(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def freeze_nothing(model: torch.nn.Module, groups: Any) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith("target_"))

    monkeypatch.setattr(local_module, "freeze_all_but", freeze_nothing)
    words = finding(tiny(strategy="lw_fedssl"), "client trains what is planned")
    assert "changed: encoder.blocks.0" in words


def test_frozen_batchnorm_in_training_mode_is_caught(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def freeze_gradients_only(model: torch.nn.Module, groups: Any) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith("target_") and group_of(name) in groups)
        model.train()

    monkeypatch.setattr(local_module, "freeze_all_but", freeze_gradients_only)
    resnet = {"encoder": {"name": "resnet18", "depth": 4}, "federation": {"rounds": 4, "num_clients": 2}}
    config = tiny(resnet, {"strategy": "lw_fedssl", "data": {"num_train": 16}})
    assert "bn1.num_batches_tracked" in finding(config, "client trains what is planned")


def test_weights_that_arrive_uncounted_are_caught(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Server] = []
    download, encode = Dispatch.download, Server.encode

    def heads_only(self: Dispatch, client: int, active: Any) -> Delivery:
        whole = download(self, client, active)
        return replace(whole, groups=("heads",), shipment=declare(self.specs, {"heads": "round"}))

    def noted(self: Server, groups: Any, *form: Any) -> bytes:
        served.append(self)
        return encode(self, groups, *form)

    def by_reference(self: Worker, visit: Visit) -> LocalTask:
        assert self.task is not None
        self.task.method.load_online(served[-1].state)
        self._received_bytes = len(visit.payload)
        return self.task

    monkeypatch.setattr(Dispatch, "download", heads_only)
    monkeypatch.setattr(Server, "encode", noted)
    monkeypatch.setattr(Worker, "_receive", by_reference)
    assert "arrived otherwise" in finding(tiny(strategy="fedssl"), "clients start from payloads alone")


def test_a_client_that_goes_on_from_the_one_before_it_is_caught(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_once(self: Worker, visit: Visit) -> LocalTask:
        assert self.task is not None
        if not self._loaded:
            self.task.method.load_online(decode(visit.payload))
        self._loaded = {"everything": 1}
        self._received_bytes = len(visit.payload)
        return self.task

    monkeypatch.setattr(Worker, "_receive", load_once)
    assert "round 0, client 1" in finding(tiny(strategy="fedssl"), "clients start from payloads alone")


def test_heads_that_stay_at_home_are_caught(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_heads(state: StateDict, groups: Iterable[str]) -> StateDict:
        groups = set(groups)
        return select(state, groups - {"heads"} if len(groups) > 1 else groups)  # the upload's choice alone

    monkeypatch.setattr(client_module, "select", without_heads)
    with pytest.raises(AccountingError, match=r"round 0, client 0, upload: \d+ bytes were declared"):
        Trial(tiny())
    monkeypatch.setattr("fedbench.federation.federation.compare", lambda *_: None)
    assert "heads in every upload" in finding(tiny(), "heads are synchronised")


def test_a_version_that_does_not_rise_is_caught(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedbench.federation.versions.Versions.rise", once_per_group())
    words = finding(tiny(strategy="fedssl"), "clients start from payloads alone")
    assert "all clients start from the server's model" in words


def once_per_group() -> Callable[[Any, str, bool], None]:
    from fedbench.federation.versions import Versions

    rise = Versions.rise
    return lambda self, group, aggregated: None if group in self.current else rise(self, group, aggregated)


def test_bytes_of_the_python_object_are_caught(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def count_objects(self: RoundRecord) -> int:
        return sum(sys.getsizeof(shipment) for shipment in self.uploads_sent.values())

    monkeypatch.setattr(RoundRecord, "upload_bytes", property(count_objects))
    assert "upload bytes" in finding(tiny(), "bytes are counted")


def test_a_grown_encoder_that_starts_anew_is_caught(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    start_stage = Server.start_stage

    def anew(self: Server, plan: StagePlan, specs: Specs, initial: StateDict, begins: Set[str]) -> None:
        self.dispatch.specs = {}
        start_stage(self, plan, specs, {key: value + 1 for key, value in initial.items()}, begins)

    monkeypatch.setattr(Server, "start_stage", anew)
    config = tiny(strategy="prog_fedssl")
    assert "stage 2" in finding(config, "growing keeps earlier blocks")


def test_a_server_that_ignores_the_aggregate_is_caught(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "apply", lambda self, values, aggregated: None)
    assert "the server's model is the aggregate" in finding(tiny(), "server takes the aggregate")


def test_randomness_that_depends_on_who_trained_before_is_caught(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()
    monkeypatch.setattr("fedbench.training.local.stream", lambda seed, *key: next(calls))
    assert "same bits" in finding(tiny(), "same seed gives same bits")


def test_a_seed_that_reaches_nothing_is_caught(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedbench import random

    deaf = random.stream
    for module in ("random", "training.local", "training.model", "encoders"):
        monkeypatch.setattr(f"fedbench.{module}.stream", lambda seed, *key: deaf(0, *key))
    assert "the same bits" in finding(tiny(), "another seed gives other bits")
