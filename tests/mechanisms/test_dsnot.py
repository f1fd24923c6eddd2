"""DSnoT: which weights are zero, what that does to a layer's output, and what it costs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from exhaustive import exhaustive, stress
from fedbench.methods.mechanisms.dsnot import DSnoT
from same_run import assert_a_stop_changes_nothing, assert_processes_change_nothing, equal, run
from torch import Tensor, nn

import fedbench
from fedbench.config import Config
from fedbench.conformance.witness import Witness
from fedbench.encoders.tensor_groups import TensorSpec
from fedbench.errors import UserError
from fedbench.federation import Mechanism, StagePlan, Turn, Way
from fedbench.federation.experiment import check, prepare
from fedbench.federation.sparse import RowSparse
from fedbench.profiling.profile import profile
from fedbench.ssl import SSLMethod
from fedbench.training.model import build_model

Tiny = Callable[..., Config]
HALF = {"sparsity": 0.5, "share": 0.2}
UNRELIABLE = {"num_clients": 5, "participants": 3, "dropout_before": 0.2, "dropout_after": 0.2, "late_clients": 1}


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


@pytest.mark.parametrize("strategy", ["fedssl", exhaustive("prog_fedssl"), "lw_fedssl"])
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


@pytest.mark.costs
@pytest.mark.parametrize(
    ("strategy", "federation"),
    [
        exhaustive({"name": "lw_fedssl"}, {}),
        exhaustive({"name": "lw_fedssl"}, {"client_memory": "none"}),
        exhaustive({"name": "fedssl"}, {}),
        exhaustive({"name": "lw_fedssl", "depth_dropout": {"max_depth": 1}}, {}),
        ({"name": "lw_fedssl", "quantise": {"download": 32}}, {}),
    ],
)
def test_profile_is_the_run(tiny: Tiny, strategy: dict[str, Any], federation: dict[str, Any]) -> None:
    late = {"late_clients": 1, "late_round": 3}
    config = tiny(strategy={**strategy, "dsnot": HALF}, federation={**late, **federation})
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


@pytest.mark.exhaustive
def test_a_run_that_is_stopped_goes_on_with_pruned_blocks(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(strategy={"name": "lw_fedssl", "dsnot": HALF})
    whole = fedbench.run(config, out=tmp_path / "whole").path
    rounds = fedbench.federate(config, out=tmp_path / "stopped")
    for _ in range(2):  # the first stage is over
        next(rounds)
    rounds.close()
    resumed = fedbench.run(config, out=tmp_path / "stopped").path
    assert (whole / "encoder.safetensors").read_bytes() == (resumed / "encoder.safetensors").read_bytes()


def test_a_pruned_block_travels_as_a_bitmap_and_the_weights_that_are_left(tiny: Tiny) -> None:
    """Of rows of 16 weights 4 are zero, of rows of 64 19; a block has 144 biases, and 64 numbers in its norms."""
    config = tiny(strategy={"name": "lw_fedssl", "dsnot": {"sparsity": 0.3, "share": 0.2}})
    records = Witness(prepare(config)).records
    shipment = records[2].downloads[0]
    sizes = {one.dtype: one.value_bytes for one in shipment.entries if one.group == "block_1"}
    bitmaps = (48 * 16 + 16 * 16 + 64 * 16 + 16 * 64) // 8
    kept = (48 + 16 + 64) * (16 - 4) + 16 * (64 - 19)
    assert sizes == {"uint8": bitmaps, "float32": 4 * (kept + 144 + 64)}
    dense = {one.dtype for record in records[:2] for one in record.downloads[0].entries if one.group == "block_1"}
    assert dense == {"float32"}  # while it is trained


@pytest.mark.parametrize(
    "federation", [exhaustive({}), UNRELIABLE, exhaustive({"client_memory": "none"})], ids=str
)
def test_the_form_of_a_pruned_block_changes_no_bit_and_only_less_is_sent(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, federation: dict[str, Any]
) -> None:
    config = tiny(strategy={"name": "lw_fedssl", "dsnot": HALF}, federation=federation)
    packed, records = run(config, tmp_path / "a")
    monkeypatch.setattr(DSnoT, "codec_of_finished", lambda _: None)
    whole, others = run(config, tmp_path / "b")
    assert equal(packed, whole)
    pairs = [(one.download_bytes, two.download_bytes) for one, two in zip(records, others, strict=True)]
    assert all(one <= two for one, two in pairs)
    assert pairs[0][0] == pairs[0][1]
    assert pairs[2][0] < pairs[2][1]
    assert [one.upload_bytes for one in records] == [two.upload_bytes for two in others]


def test_the_papers_rules_count_a_pruned_block_as_it_travels(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that remember nothing are sent one in two rounds, two in two more: half of 3,072 weights is left."""
    config = tiny(strategy={"name": "lw_fedssl", "dsnot": HALF}, federation={"client_memory": "none"})
    packed = profile(config, trace=False).total("download_bytes", "paper-v4")
    monkeypatch.setattr(DSnoT, "codec_of_finished", lambda _: None)
    whole = profile(config, trace=False).total("download_bytes", "paper-v4")
    assert whole - packed == 2 * (1 + 2) * (4 * 3072 // 2 - 3072 // 8)


def test_every_client_has_the_servers_own_values_whenever_it_comes(tiny: Tiny) -> None:
    config = tiny(strategy={"name": "lw_fedssl", "dsnot": HALF}, federation=UNRELIABLE)
    packed = set()
    for visit in Witness(prepare(config)).visits:
        assert all(torch.equal(visit.before[key], visit.server[key]) for key in visit.sent)
        packed |= {(visit.stage, key.split("/")[0]) for key in visit.payload if key.endswith(".bitmap")}
    assert packed == {(2, "block_1"), (3, "block_1"), (3, "block_2")}  # in stage 3 to who was away, or is late


@dataclass(frozen=True)
class Settles(Mechanism):
    """In a stage's last round only the newest block is trained: the others are as clients then have them."""

    def visit_plan(self, plan: StagePlan, turn: Turn) -> StagePlan:
        return plan.limited_to([plan.depth - 1]) if turn.round_in_stage == turn.rounds_in_stage - 1 else plan


@pytest.mark.parametrize("stop", [exhaustive(3), stress(2), stress(4)])
@pytest.mark.parametrize(
    "strategy",
    [
        {"dsnot": HALF},
        {"dsnot": HALF, "quantise": True},
        # no row of 16 loses a weight, so a block that is finished is the version that clients have already
        {"blocks_per_stage": 2, f"{__name__}:Settles": {}, "dsnot": {"sparsity": 0.01, "share": 0.2}},
    ],
    ids=str,
)
def test_pruned_blocks_are_the_same_with_processes_and_after_a_stop(
    tiny: Tiny, tmp_path: Path, strategy: dict[str, Any], stop: int
) -> None:
    config = tiny(strategy={"name": "lw_fedssl", **strategy}, federation=UNRELIABLE)
    assert_processes_change_nothing(config, tmp_path / "processes")
    assert_a_stop_changes_nothing(config, tmp_path / "stopped", stop)


@pytest.mark.parametrize(("download", "is_sparse"), [(8, False), (32, True)])
def test_where_a_codec_packs_the_way_down_it_packs_pruned_blocks_too(
    tiny: Tiny, download: int, is_sparse: bool
) -> None:
    config = tiny(strategy={"name": "lw_fedssl", "dsnot": HALF, "quantise": {"download": download}})
    keys = {key for visit in Witness(prepare(config)).visits for key in visit.payload}
    assert any(key.endswith(".bitmap") for key in keys) == is_sparse
    assert any(key.endswith("/codes") for key in keys) != is_sparse


FORM = RowSparse(sparsity=0.5)
DOWN = Way("download")


def through(form: RowSparse, values: dict[str, Tensor]) -> dict[str, Tensor]:
    specs = {key: TensorSpec(tuple(value.shape), value.dtype, False) for key, value in values.items()}
    packed = form.pack(values, DOWN, torch.Generator())
    made = {key: (tuple(value.shape), value.dtype) for key, value in packed.items()}
    assert made == {key: spec[:2] for key, spec in form.wire(specs, DOWN).items()}
    return form.unpack(packed, specs, DOWN)


def test_no_bit_is_lost_though_a_row_has_more_zeros_than_it_must() -> None:
    weight = torch.tensor([[0, 1.5, 0, -2], [0, 0, -0.0, 3], [0, 0, 0, 0]])
    values = {"fc.weight": weight, "fc.bias": torch.tensor([1.0, 2, 3]), "mlp.gate.weight": torch.ones(3, 4)}
    back = through(FORM, values)
    assert all(torch.equal(back[key].view(torch.int32), value.view(torch.int32)) for key, value in values.items())


@pytest.mark.parametrize(("sparsity", "is_packed"), [(1 / 32, False), (2 / 32, True)])
def test_a_layer_is_packed_where_that_is_less(sparsity: float, is_packed: bool) -> None:
    """Of 32 weights a bitmap has the four bytes of one."""
    specs = {"fc.weight": TensorSpec((5, 32), torch.float32, False)}
    form = RowSparse(sparsity=sparsity).wire(specs, DOWN)
    assert (form != specs) == is_packed
    assert sum(spec.nbytes for spec in form.values()) == 5 * 32 * 4 - is_packed * 5 * 4


def test_a_row_that_is_not_pruned_is_told() -> None:
    with pytest.raises(
        UserError, match=r"fc\.weight has rows of more than 2 weights that are not zero; allowed: 2"
    ):
        FORM.pack({"fc.weight": torch.tensor([[1.0, 0, 2, 3]])}, DOWN, torch.Generator())


@dataclass(frozen=True)
class Forgets(DSnoT):
    """Says that it prunes."""

    def prune(self, model: SSLMethod, images: Tensor, blocks: tuple[int, ...]) -> None:
        return


@pytest.mark.dry_run
def test_what_does_not_fit_its_form_is_refused_before_training(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="rows of more than 8 weights that are not zero"):
        check(tiny(strategy={"name": "lw_fedssl", f"{__name__}:Forgets": HALF}))


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
