"""DSnoT: which weights are zero, what that does to a layer's output, and what it costs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fedbench.methods.mechanisms.dsnot import DSnoT
from torch import Tensor, nn

import fedbench
from fedbench.config import Config
from fedbench.conformance.witness import Witness
from fedbench.errors import UserError
from fedbench.federation.experiment import check, prepare
from fedbench.training.model import build_model

Tiny = Callable[..., Config]
HALF = {"sparsity": 0.5, "share": 0.2}


def layer(rows: int = 24, columns: int = 40, samples: int = 300) -> tuple[Tensor, Tensor]:
    """Weights (O, I), and inputs (N, I) that depend on each other and whose means are not zero."""
    draw = torch.Generator().manual_seed(3)
    mixed = torch.randn(samples, 12, generator=draw) @ torch.randn(12, columns, generator=draw)
    mean, noise = torch.randn(columns, generator=draw), torch.randn(samples, columns, generator=draw)
    return torch.randn(rows, columns, generator=draw), mixed + mean + 0.3 * noise


def expected_error(weight: Tensor, x: Tensor, kept: Tensor) -> Tensor:
    """Of each row: the mean of what the pruned weights would add."""
    return ((weight * ~kept) @ x.T).mean(1)


def by_hand(weight: Tensor, x: Tensor, sparsity: float, cycles: int) -> Tensor:
    """The rule, row by row and weight by weight."""
    mask = torch.ones_like(weight, dtype=torch.bool)
    mean, var, norm = x.mean(0), x.var(0), x.square().sum(0).sqrt()
    for r in range(len(weight)):
        w, kept = weight[r].tolist(), set(range(weight.shape[1]))
        kept -= set(sorted(kept, key=lambda i: abs(w[i]))[: int(sparsity * len(w))])
        for _ in range(cycles):
            pruned = set(range(len(w))) - kept
            error = sum(w[i] * float(mean[i]) for i in pruned)
            sign = 1 if error > 0 else -1
            back = [i for i in pruned if sign * w[i] * float(mean[i]) > 0]
            go = [i for i in kept if sign * w[i] * float(mean[i]) < 0]
            if not back or not go:
                break
            i = max(back, key=lambda i: sign * w[i] * float(mean[i] / var[i]))
            j = min(go, key=lambda j: abs(w[j]) * float(norm[j]))
            if abs(error - w[i] * float(mean[i]) + w[j] * float(mean[j])) >= abs(error):
                break
            kept = (kept | {i}) - {j}
        mask[r] = torch.tensor([i in kept for i in range(len(w))])
    return mask


@pytest.mark.parametrize(("sparsity", "cycles"), [(0.5, 50), (0.75, 3), (0.5, 0), (0.01, 50)])
def test_the_mask_is_that_of_the_rule_by_hand(sparsity: float, cycles: int) -> None:
    weight, x = layer()
    mask = DSnoT(sparsity=sparsity, cycles=cycles).mask(weight, x)
    assert torch.equal(mask, by_hand(weight, x, sparsity, cycles))
    assert (~mask).sum(1).unique().tolist() == [int(sparsity * 40)]


def test_the_expected_error_of_no_row_grows_and_the_output_is_nearer_than_by_magnitude() -> None:
    weight, x = layer()
    before, after = (DSnoT(sparsity=0.6, cycles=cycles).mask(weight, x) for cycles in (0, 50))
    errors = expected_error(weight, x, before).abs(), expected_error(weight, x, after).abs()
    assert (errors[1] <= errors[0]).all()
    assert errors[1].mean() < errors[0].mean() / 5
    activations = x.relu()  # most of such an input is its mean
    masks = (DSnoT(sparsity=0.6, cycles=cycles).mask(weight, activations) for cycles in (0, 50))
    off = [((weight * ~kept) @ activations.T).square().mean() for kept in masks]
    assert off[1] < 0.8 * off[0]


def linear(state: dict[str, Tensor], block: int) -> dict[str, Tensor]:
    start = f"encoder.blocks.{block}."
    return {key: one for key, one in state.items() if key.startswith(start) and one.ndim == 2}


@pytest.mark.parametrize("strategy", ["fedssl", "prog_fedssl", "lw_fedssl"])
def test_finished_blocks_are_pruned_and_no_other_weight_changes(tiny: Tiny, strategy: str) -> None:
    config = tiny(strategy={"name": strategy, "dsnot": HALF})
    witness = Witness(prepare(config))
    whole = Witness(prepare(tiny(strategy={"name": strategy, "dsnot": {**HALF, "sparsity": 1e-3}}))).final[-1]
    for block in range(config.encoder.depth):
        for key, weight in linear(witness.final[-1], block).items():
            assert ((weight == 0).sum(1) == weight.shape[1] // 2).all(), key
            if strategy != "lw_fedssl":  # whose blocks above learn on pruned ones
                assert torch.equal(weight, whole[key].where(weight != 0, 0.0))
    first = witness.final[1]
    is_pruned = [bool((weight == 0).any()) for weight in linear(first, 0).values()]
    assert all(is_pruned) == any(is_pruned) == (strategy == "lw_fedssl")


def test_without_sparsity_it_is_the_strategy(tiny: Tiny) -> None:
    without, plain = (
        Witness(prepare(tiny(strategy=strategy))).final[-1]
        for strategy in ({"name": "lw_fedssl", "dsnot": {"sparsity": 0.0}}, "lw_fedssl")
    )
    assert all(torch.equal(value, plain[key]) for key, value in without.items())


def test_blocks_are_pruned_on_inputs_from_the_blocks_pruned_before(tiny: Tiny) -> None:
    config = tiny()
    model, images = build_model(config, 3), torch.rand(5, 1, 8, 8)
    own = {key: value.clone() for key, value in model.online_state().items()}
    prune = DSnoT()
    with torch.no_grad():
        prune.prune(model, images, (0, 1, 2))
        inputs: list[Tensor] = []
        block = model.encoder.blocks[2]
        block.attn.qkv.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        model.encoder(images)
    weight = own["encoder.blocks.2.attn.qkv.weight"]
    pruned = block.attn.qkv.weight
    assert isinstance(pruned, nn.Parameter)
    assert torch.equal(pruned, weight.where(prune.mask(weight, inputs[0].flatten(0, 1)), 0.0))


@pytest.mark.parametrize(
    "strategy",
    [{"name": "lw_fedssl"}, {"name": "fedssl"}, {"name": "lw_fedssl", "depth_dropout": {"max_depth": 1}}],
)
def test_profile_is_the_run(tiny: Tiny, strategy: dict[str, Any]) -> None:
    config = tiny(strategy={**strategy, "dsnot": HALF}, federation={"late_clients": 1, "late_round": 3})
    witness, predicted = Witness(prepare(config)), fedbench.profile(config)
    clients = config.federation.num_clients
    assert sum(record.server_flops for record in witness.records) == predicted.server_flops > 0
    assert max(record.server_peak_memory_bytes for record in witness.records) == predicted.server_peak_memory_bytes
    for figure in ("download_bytes", "upload_bytes", "flops"):
        counted = sum(getattr(one, figure) for one in witness.records)
        assert counted == pytest.approx(predicted.total(figure, "step") * clients, rel=1e-12)


def test_the_servers_flops_are_forward_passes_of_its_images(tiny: Tiny) -> None:
    """LW, stage s: the stem and the blocks below, once; then the block to be pruned."""
    config = tiny(strategy={"name": "lw_fedssl", "dsnot": HALF})
    images, tokens, width = len(prepare(config).auxiliary["DSnoT"]), 4, 16
    stem = tokens * width * 4 * 4  # patches of 4 x 4 pixels
    block = tokens * 12 * width**2 + 2 * tokens**2 * width  # four linear layers, attention
    macs = sum(stem + stage * block for stage in (1, 2, 3))
    assert fedbench.profile(config).server_flops == 2 * images * macs


def test_a_run_that_is_stopped_goes_on_with_pruned_blocks(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(strategy={"name": "lw_fedssl", "dsnot": HALF})
    whole = fedbench.run(config, out=tmp_path / "whole").path
    rounds = fedbench.federate(config, out=tmp_path / "stopped")
    for _ in range(2):  # the first stage is over
        next(rounds)
    rounds.close()
    resumed = fedbench.run(config, out=tmp_path / "stopped").path
    assert (whole / "encoder.safetensors").read_bytes() == (resumed / "encoder.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (
            {"strategy": {"name": "lw_fedssl@v3", "dsnot": True}},
            "dsnot with calibration, whose server trains",
        ),
        (
            {"strategy": {"name": "fedssl", "dsnot": True}, "encoder": {"name": "resnet18", "depth": 4}},
            "allowed: vit",
        ),
    ],
)
def test_where_a_pruned_block_would_not_stay_pruned(tiny: Tiny, tree: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check(tiny(tree))
