"""DP-FedAvg: what is clipped, what is added, what is spent, and what would break the bound."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedbench.methods.mechanisms.dp_fedavg import ORDERS, epsilon
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import norm
from torch import Tensor

import fedbench
from fedbench.config import Config
from fedbench.conformance.checks import Trial, server_takes_the_aggregate
from fedbench.conformance.witness import Witness
from fedbench.errors import UserError
from fedbench.federation import (
    ClientUpdate,
    ServerState,
    StagePlan,
    Strategy,
    load_mechanisms,
    load_strategy,
)
from fedbench.federation.aggregation import Aggregation
from fedbench.federation.experiment import prepare
from fedbench.plugins import builtin_files
from fedbench.profiling.render import to_dict, to_text
from fedbench.reporting.leaderboard import leaderboard, read_runs
from fedbench.tracking.run_directory import RunDirectory

Tiny = Callable[..., Config]
OFF = {"clip": None, "noise": 0.0}
UNRELIABLE = {"num_clients": 5, "participants": 3, "dropout_after": 0.3, "late_clients": 1, "late_round": 2}


def dp(strategy: str = "fedssl", **fields: Any) -> dict[str, Any]:
    return {"name": strategy, "dp_fedavg": fields}


def mechanism(**fields: Any) -> Any:
    (found,) = load_mechanisms(dp(**fields))
    return found


def server(values: dict[str, Tensor], num_drawn: int, seed: int = 0) -> ServerState:
    return ServerState(values, frozenset(values), StagePlan.end_to_end(1), 1, 0, num_drawn, seed=seed)


def combined(updates: list[ClientUpdate], state: ServerState, **fields: Any) -> dict[str, Tensor]:
    return Aggregation(load_strategy({"name": "fedssl"}), [mechanism(**fields)], {})(iter(updates), state)


def is_buffer(key: str) -> bool:
    return "running_" in key or "num_batches" in key


@pytest.mark.parametrize("strategy", ["fedssl", "lw_fedssl"])
def test_without_clip_and_noise_equal_clients_are_averaged_as_ever(tiny: Tiny, strategy: str) -> None:
    private, plain = (Witness(prepare(tiny(strategy=one))) for one in (dp(strategy, **OFF), strategy))
    assert len({len(one) for one in plain.experiment.client_indices}) == 1
    for ours, theirs in zip(private.final, plain.final, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs if not is_buffer(key))


@pytest.mark.parametrize("seed", range(8))
def test_a_clipped_change_is_no_longer_than_the_clip_after_rounding(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    old = {"a": 100 * torch.randn(500, generator=draw), "b": 100 * torch.randn(20, 20, generator=draw)}
    sent = {key: value + torch.randn(value.shape, generator=draw) for key, value in old.items()}
    kept = mechanism(clip=0.1).receive(ClientUpdate(0, 9, sent), server(old, 1)).state
    both = [torch.cat([(one[key].double() - old[key].double()).flatten() for key in old]) for one in (kept, sent)]
    assert 0.0995 < both[0].norm().item() <= 0.1 * (1 + 1e-12)
    assert torch.cosine_similarity(*both, dim=0) > 0.999


def test_a_change_within_the_clip_keeps_its_bits() -> None:
    old = {"a": torch.tensor([1 / 3, 0.0])}
    sent = {"a": old["a"] + torch.tensor([0.03, -0.04])}
    assert torch.equal(
        mechanism(clip=0.0501).receive(ClientUpdate(0, 9, sent), server(old, 1)).state["a"], sent["a"]
    )


def test_every_client_has_one_weight_and_those_who_sent_nothing_stood_still() -> None:
    """Five drawn, two back, of 1 and 99 images; one did not send b. By hand: (0.3 - 1.0 * 0.5) / 5, 2 / 5."""
    old = {"a": torch.tensor([1.0]), "b": torch.tensor([4.0])}
    updates = [
        ClientUpdate(0, 1, {"a": torch.tensor([1.3]), "b": torch.tensor([4.4])}),  # of length 0.5
        ClientUpdate(3, 99, {"a": torch.tensor([-7.0])}),
    ]
    new = combined(updates, server(old, 5), clip=0.5, noise=0.0)
    assert new["a"].item() == pytest.approx(1 + (0.3 - 0.5) / 5, abs=1e-6)
    assert new["b"].item() == pytest.approx(4 + 0.4 / 5, abs=1e-6)


def test_the_noise_has_its_deviation_and_its_own_stream_for_seed_round_and_entry() -> None:
    old = {"a": torch.full((400, 500), 3.0), "b": torch.full((400, 500), 3.0)}

    def noise(seed: int = 0, round_index: int = 0) -> dict[str, Tensor]:
        state = replace(server(old, 4, seed), round_index=round_index)
        new = combined([ClientUpdate(0, 1, dict(old))], state, clip=0.2, noise=1.5)
        return {key: value - 3.0 for key, value in new.items()}

    first = noise()
    assert first["a"].std().item() == pytest.approx(1.5 * 0.2 / 4, rel=0.01)
    assert abs(first["a"].mean().item()) < 5 * 0.075 / math.sqrt(200_000)
    assert torch.equal(first["a"], noise()["a"])
    others = [first["b"], noise(seed=1)["a"], noise(round_index=1)["a"]]
    for other in others:
        both = torch.stack([first["a"].flatten(), other.flatten()])
        assert abs(torch.corrcoef(both)[0, 1].item()) < 0.02


def test_what_is_not_trained_gets_no_noise() -> None:
    old = {"encoder.blocks.0.w": torch.ones(3), "encoder.blocks.1.w": torch.ones(3)}
    state = replace(server(old, 1), plan=StagePlan(2, trainable=[1], upload=[0, 1]))
    new = combined([ClientUpdate(0, 1, {key: value + 9 for key, value in old.items()})], state)
    assert torch.equal(new["encoder.blocks.0.w"], old["encoder.blocks.0.w"])
    assert not torch.equal(new["encoder.blocks.1.w"], old["encoder.blocks.1.w"])


def gaussian_delta(eps: float, noise: float) -> float:
    """Of the Gaussian mechanism of sensitivity 1 (Balle and Wang 2018, Theorem 8)."""
    half, shift = 1 / (2 * noise), eps * noise
    return float(norm.cdf(half - shift) - math.exp(eps) * norm.cdf(-half - shift))


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (1.0, 20), (4.0, 100), (0.5, 6)])
def test_epsilon_of_full_participation_is_the_closed_forms(noise: float, rounds: int) -> None:
    """Renyi: alpha T / (2 z^2), minimised by hand over alpha; the exact one, of noise z / sqrt(T), is less."""
    delta = 1e-5

    def by_order(alpha: float) -> float:
        slack = math.log((alpha - 1) / alpha) - (math.log(delta) + math.log(alpha)) / (alpha - 1)
        return alpha * rounds / (2 * noise**2) + slack

    least = minimize_scalar(by_order, bounds=(1.001, 500), method="bounded", options={"xatol": 1e-9}).fun
    exact = brentq(lambda eps: gaussian_delta(eps, noise / math.sqrt(rounds)) - delta, 0, 700)
    found = epsilon(noise, {(3, 3): rounds}, delta)
    assert found == pytest.approx(least, rel=2e-3)
    assert exact < found < 1.2 * exact


def log_densities(rate: float, noise: float, shift: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Of a drawn sum with and without the client, on a grid; and the grid's width."""
    x = np.linspace(-40 * noise, 40 * noise + shift, 40_001)
    without = norm.logpdf(x, scale=noise)
    drawn = norm.logpdf(x, loc=shift, scale=noise)
    return np.logaddexp(math.log1p(-rate) + without, math.log(rate) + drawn), without, float(x[1] - x[0])


def test_epsilon_of_partial_participation_is_the_divergence_of_the_two_sums() -> None:
    """Two of eight, noise 1, sums two clips apart: Renyi divergence by integration."""
    delta, rounds, found = 1e-5, 10, []
    mixed, without, width = log_densities(2 / 8, 1.0, 2.0)
    for alpha in ORDERS[:100]:
        exponent = alpha * mixed + (1 - alpha) * without
        top = exponent.max()
        renyi = (top + math.log(np.exp(exponent - top).sum() * width)) / (alpha - 1)
        slack = math.log((alpha - 1) / alpha) - (math.log(delta) + math.log(alpha)) / (alpha - 1)
        found.append(rounds * renyi + slack)
    assert epsilon(1.0, {(2, 8): rounds}, delta) == pytest.approx(min(found), rel=1e-6)


def test_one_drawn_round_spends_no_more_than_is_said_and_more_than_poisson_sampling_would() -> None:
    """All others at -C, the client at C: the sums are 2 C apart, which sampling by itself would not make them."""
    delta, noise, drawn = 1e-5, 2.0, (2, 4)
    mixed, without, width = log_densities(2 / 4, noise, 2.0)

    def exceeds(eps: float) -> float:
        return float(np.maximum(np.exp(mixed) - math.exp(eps) * np.exp(without), 0).sum() * width) - delta

    exact = brentq(exceeds, 0, 50)
    poisson = epsilon(2 * noise, {drawn: 1}, delta)  # half of which is told to the accountant
    assert poisson < exact <= epsilon(noise, {drawn: 1}, delta)


def test_epsilon_grows_with_rounds_and_falls_with_noise() -> None:
    by_rounds = [epsilon(1.0, {(2, 8): rounds, (2, 7): 1}, 1e-5) for rounds in (1, 2, 5, 50)]
    by_noise = [epsilon(noise, {(2, 8): 3}, 1e-5) for noise in (8.0, 2.0, 0.5, 0.05)]
    for found in (by_rounds, by_noise):
        assert all(one < other for one, other in pairwise(found))
    assert epsilon(1.0, {}, 1e-5) == 0
    assert math.isinf(epsilon(0.0, {(3, 3): 1}, 1e-5))


@pytest.mark.costs
@pytest.mark.parametrize("federation", [{}, UNRELIABLE])
def test_what_is_spent_stands_in_rounds_summary_profile_and_table(
    tiny: Tiny, tmp_path: Path, federation: dict[str, Any]
) -> None:
    """By the clients that were drawn in each round, late ones not yet there."""
    config = tiny(strategy=dp(noise=1.2, delta=1e-6), federation=federation)
    directory = RunDirectory(fedbench.run(config, out=tmp_path).path)
    drawn = {(3, 4): 2, (3, 5): 4} if federation else {(3, 3): 6}
    expected = epsilon(1.2, drawn, 1e-6)
    rounds = [one["privacy/epsilon"] for one in directory.rounds()]
    assert rounds == sorted(set(rounds))
    assert rounds[0] == epsilon(1.2, {next(iter(drawn)): 1}, 1e-6)
    summary = directory.summary()
    foreseen = fedbench.profile(config)
    predicted = foreseen.figures
    assert f"privacy/epsilon {expected:.4g}, privacy/delta 1e-06" in to_text([foreseen], "step")
    assert to_dict([foreseen], "step")["total"]["privacy/epsilon"] == expected
    assert rounds[-1] == summary["privacy/epsilon"] == predicted["privacy/epsilon"] == expected
    assert summary["privacy/delta"] == predicted["privacy/delta"] == 1e-6
    row = next(row for row in leaderboard(read_runs(tmp_path)))
    assert (row.epsilon, row.delta) == (expected, 1e-6)


@pytest.mark.exhaustive
def test_a_killed_run_of_two_processes_ends_with_the_bits_of_one_that_was_not(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(strategy=dp("prog_fedssl"), federation={"rounds": 4, "num_clients": 4, "dropout_after": 0.3})
    alone = fedbench.run(config, out=tmp_path / "a").path
    rounds = fedbench.federate(config.model_copy(update={"engine": "processes", "workers": 2}), out=tmp_path / "b")
    for _ in range(2):
        next(rounds)
    rounds.close()
    resumed = fedbench.run(config, out=tmp_path / "b").path
    whole, again = RunDirectory(alone), RunDirectory(resumed)
    assert whole.encoder_digest() == again.encoder_digest()
    for key in ("server/sha256", "privacy/epsilon"):
        assert [one[key] for one in whole.rounds()] == [one[key] for one in again.rounds()]


def test_the_server_keeps_its_buffers_of_the_heads(tiny: Tiny) -> None:
    witness = Witness(prepare(tiny(strategy=dp())))
    start, end = witness.visits[0].server, witness.final[-1]
    buffers = [key for key in end if is_buffer(key)]
    assert buffers
    assert all(torch.equal(start[key], end[key]) for key in buffers)


def test_the_noise_of_a_run_is_that_of_its_seed(tiny: Tiny) -> None:
    """The check aggregates each round's updates anew, with the configuration's seed."""
    assert server_takes_the_aggregate(Trial(tiny(strategy=dp(), federation={"rounds": 1}, seed=3))) is None


@pytest.mark.dry_run
def test_an_encoder_with_running_statistics_is_refused(tiny: Tiny) -> None:
    resnet = {"encoder": {"name": "resnet18", "depth": 4}}
    with pytest.raises(UserError, match=r"dp_fedavg: 'encoder\..*allowed: encoders without running statistics"):
        prepare(tiny(resnet, strategy=dp()))


class OwnWeights(Strategy):
    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        return StagePlan.end_to_end(num_blocks)

    def aggregate(self, updates: Any, server: ServerState) -> dict[str, Tensor]:
        return super().aggregate(updates, server)


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        (dp(clip=None), r"noise=1\.0 with clip=null"),
        (dp(noise=1e-4), r"noise=0\.0001; allowed: 0, or at least"),
        (dp(delta=0.34), r"delta=0\.34 with 3 clients"),
        (dp("fedcybgd"), r"strategy=fedcybgd chooses clients by a rule of its own"),
        (dp(f"{__name__}:OwnWeights"), "weighs updates by a rule of its own"),
        ({**dp(), "l_dawa": True}, "LDAWA changes updates too"),
        ({**dp(), "scaffold": True}, "Scaffold sends tensors that nobody clips"),
    ],
)
def test_what_would_void_the_bound_is_refused(tiny: Tiny, strategy: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=rf"strategy\.dp_fedavg: .*{words}"):
        prepare(tiny(strategy=strategy))


@pytest.mark.parametrize("narrowing", [{"name": "fedssl", "salf": True}, {"name": "progfed"}])
def test_blocks_that_tell_who_was_drawn_are_refused(tiny: Tiny, narrowing: dict[str, Any]) -> None:
    strategy = {**narrowing, "dp_fedavg": True}
    assert prepare(tiny(strategy=strategy))
    with pytest.raises(UserError, match=r"federation\.participants=2 with .*which blocks moved"):
        prepare(tiny(strategy=strategy, federation={"participants": 2}))


def test_a_servers_rule_may_stand_behind_it_and_none_before_it(tiny: Tiny, tmp_path: Path) -> None:
    rule = Path(builtin_files("mechanisms")["server_optimizer"]).read_text(encoding="utf-8")
    for name in ("before.py", "later.py"):  # they are in the order of their names
        (tmp_path / name).write_text(rule, encoding="utf-8")
    with pytest.raises(UserError, match="ServerOptimizer changes the aggregate before the noise; allowed: a name"):
        prepare(tiny(strategy={**dp(), str(tmp_path / "before.py"): True}))
    assert prepare(tiny(strategy={**dp(), str(tmp_path / "later.py"): True}))
    assert prepare(tiny(strategy={**dp(), "server_optimizer": True, "calibration": True}))
