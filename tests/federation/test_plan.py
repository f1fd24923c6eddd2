import pytest

from fedbench.encoders.tensor_groups import group_of
from fedbench.errors import UserError
from fedbench.federation import StagePlan, load_strategy
from fedbench.federation.plan import check_plan, check_plans, line_up, split_rounds


def rows(name: str, num_blocks: int, **fields: int) -> list[tuple[int, list[int], list[int]]]:
    strategy = load_strategy({"name": name, **fields})
    stages = range(1, strategy.num_stages(num_blocks) + 1)
    plans = [strategy.plan(stage, num_blocks) for stage in stages]
    return [(plan.depth, list(plan.trainable), list(plan.upload)) for plan in plans]


def test_fedssl_is_the_first_row_of_table_1() -> None:
    assert rows("fedssl", 3) == [(3, [0, 1, 2], [0, 1, 2])]


def test_prog_fedssl_trains_and_sends_all_blocks_so_far() -> None:
    assert rows("prog_fedssl", 3) == [(1, [0], [0]), (2, [0, 1], [0, 1]), (3, [0, 1, 2], [0, 1, 2])]


def test_lw_fedssl_trains_and_sends_the_newest_block() -> None:
    assert rows("lw_fedssl", 3) == [(1, [0], [0]), (2, [1], [1]), (3, [2], [2])]


def test_the_last_stage_takes_the_rest_of_the_blocks() -> None:
    assert rows("lw_fedssl", 5, blocks_per_stage=2) == [(2, [0, 1], [0, 1]), (4, [2, 3], [2, 3]), (5, [4], [4])]


def test_lw_fedssl_in_one_stage_is_fedssl() -> None:
    assert rows("lw_fedssl", 4, blocks_per_stage=4) == rows("fedssl", 4)


def test_a_block_is_finished_when_an_earlier_stage_trained_it_and_no_later_one_does() -> None:
    trained = [range(1), range(1, 2), [0, 2], [2]]  # the first one is thawed once
    plans = line_up([StagePlan(3, blocks, blocks) for blocks in trained])
    assert [set(plan.finished) for plan in plans] == [set(), set(), {1}, {0, 1}]


def test_the_stem_belongs_to_the_first_block_and_norm_and_heads_to_every_stage() -> None:
    first, second = StagePlan(1, [0], [0]), StagePlan(2, [1], [])
    assert first.trained_groups == {"stem", "block_1", "shared", "norm", "reshape", "heads"}
    assert second.trained_groups == {"block_2", "shared", "norm", "reshape", "heads"}
    assert second.uploaded_groups == {"shared", "norm", "reshape", "heads"}


@pytest.mark.parametrize(
    ("key", "group"),
    [
        ("encoder.stem.patch_embed.proj.weight", "stem"),
        ("encoder.blocks.10.norm1.weight", "block_11"),
        ("encoder.norm.bias", "norm"),
        ("encoder.reshape.weight", "reshape"),
        ("encoder.shared.fc1.weight", "shared"),
        ("encoder.blocks.3.mlp.fc1.given.weight", "given_block_4"),
        ("encoder.stem.given.pos_embed", "given_stem"),
        ("projection_head.layers.1.running_mean", "heads"),
        ("prediction_head.layers.0.weight", "heads"),
    ],
)
def test_a_key_names_its_group(key: str, group: str) -> None:
    assert group_of(key) == group


def test_a_remainder_of_rounds_goes_to_the_last_stages() -> None:
    assert split_rounds(14, 4) == [3, 3, 4, 4]
    assert split_rounds(180, 12) == [15] * 12


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (StagePlan(4, [0], [0]), "depth=4; allowed: 1 to 3"),
        (StagePlan(2, [2], [1]), "trainable=[2]; allowed: distinct blocks from 0 to 1"),
        (StagePlan(2, [1], [1, 1]), "upload=[1, 1]; allowed: distinct blocks from 0 to 1"),
    ],
)
def test_an_incoherent_plan_is_refused_with_stage_field_and_what_is_allowed(plan: StagePlan, words: str) -> None:
    with pytest.raises(UserError) as error:
        check_plan(plan, stage=2, num_blocks=3)
    assert "stage 2" in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize("depths", [[], [1, 2], [2, 1, 3], [3, 2]])
def test_an_encoder_that_shrinks_or_stays_short_is_refused(depths: list[int]) -> None:
    with pytest.raises(UserError, match=r"rising to the encoder.s 3 blocks"):
        check_plans([StagePlan(depth, [0], [0]) for depth in depths], num_blocks=3)


def test_something_else_than_a_plan_is_refused() -> None:
    with pytest.raises(UserError, match="plan of stage 1 is None; allowed: a StagePlan"):
        check_plan(None, stage=1, num_blocks=3)
