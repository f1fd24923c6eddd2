"""Which groups travel when: read off the payloads of whole runs."""

from collections.abc import Callable

import pytest
from exhaustive import exhaustive

from fedbench.config import Config
from fedbench.conformance.witness import Observation, Witness
from fedbench.encoders.tensor_groups import group_of
from fedbench.federation.experiment import prepare

ALWAYS = {"norm", "heads"}
Tiny = Callable[..., Config]


def downloads(config: Config) -> list[set[str]]:
    """Groups in the payload of client 0, round by round."""
    return [{group_of(key) for key in visit.payload} for visit in visits(config) if visit.client == 0]


def visits(config: Config) -> list[Observation]:
    return Witness(prepare(config)).visits


def test_fedssl_downloads_everything_every_round(tiny: Tiny) -> None:
    everything = {"stem", "block_1", "block_2", "block_3", *ALWAYS}
    assert downloads(tiny(strategy="fedssl")) == [everything] * 6


def test_lw_fedssl_downloads_the_newest_block_and_once_the_finished_one(tiny: Tiny) -> None:
    assert downloads(tiny(strategy="lw_fedssl")) == [
        {"stem", "block_1", *ALWAYS},
        {"stem", "block_1", *ALWAYS},
        {"stem", "block_1", "block_2", *ALWAYS},  # hand-over of L_1 ([LW] Algorithm 1, line 14)
        {"block_2", *ALWAYS},
        {"block_2", "block_3", *ALWAYS},  # hand-over of L_2
        {"block_3", *ALWAYS},
    ]


def test_handed_over_is_the_finished_block_once_and_never_what_is_under_training(tiny: Tiny) -> None:
    """Two rounds a stage, three clients: L_1 with its stem in round 2, L_2 in round 4."""
    witness = Witness(prepare(tiny(strategy="lw_fedssl@v4")))
    finished = {2: ("encoder.stem", "encoder.blocks.0."), 4: ("encoder.blocks.1.",)}
    sizes = {key: value.nbytes for key, value in witness.final[-1].items()}
    for record in witness.records:
        names = finished.get(record.round_index, ())
        block = sum(size for key, size in sizes.items() if names and key.startswith(names))
        assert record.hand_over_bytes == 3 * block


def test_prog_fedssl_downloads_all_blocks_so_far(tiny: Tiny) -> None:
    assert [len(groups - ALWAYS) - 1 for groups in downloads(tiny(strategy="prog_fedssl"))] == [1, 1, 2, 2, 3, 3]


def test_a_client_that_comes_late_is_sent_all_blocks_so_far(tiny: Tiny) -> None:
    config = tiny(strategy="lw_fedssl", federation={"participants": 1, "num_clients": 8})
    seen: set[int] = set()
    late = []
    for visit in visits(config):
        if visit.client not in seen and visit.stage > 1:
            late.append(visit)
        seen.add(visit.client)
    assert late
    for visit in late:
        blocks = {f"block_{number}" for number in range(1, visit.stage + 1)}
        assert {group_of(key) for key in visit.payload} == {"stem", *blocks, *ALWAYS}


def test_uploads_are_equal_to_the_plan_in_every_round(tiny: Tiny) -> None:
    uploads = [{group_of(key) for key in visit.upload} for visit in visits(tiny(strategy="lw_fedssl"))]
    assert uploads[0] == {"stem", "block_1", *ALWAYS}
    assert uploads[-1] == {"block_3", *ALWAYS}


def block_bytes(config: Config) -> int:
    """Bytes of the encoder's blocks alone, down and up, of all visits: the convention `paper-v3`."""
    states = [state for visit in visits(config) for state in (visit.payload, visit.upload)]
    return sum(value.nbytes for state in states for key, value in state.items() if ".blocks." in key)


def staged(tiny: Tiny, stages: int, strategy: str, **federation: str) -> Config:
    """A round and a block for each stage."""
    small = {"encoder": {"depth": stages, "width": 8}, "federation": {"num_clients": 2, "rounds": stages}}
    return tiny(small, {"federation": federation}, strategy=strategy)


@pytest.mark.parametrize(("stages", "fedssl", "lw", "prog"), [(3, 6, 3, 4), exhaustive(12, 24, 7.5, 13)])
def test_the_encoders_traffic_is_that_of_the_blocks(
    tiny: Tiny, stages: int, fedssl: float, lw: float, prog: float
) -> None:
    """Blocks a round, down and up. [LW] v3, twelve stages: 24 / 7.5 = 3.2, 24 / 13 = 1.85, exactly."""
    whole = block_bytes(staged(tiny, stages, "fedssl"))
    assert whole * lw == block_bytes(staged(tiny, stages, "lw_fedssl@v3")) * fedssl
    assert whole * prog == block_bytes(staged(tiny, stages, "prog_fedssl")) * fedssl


@pytest.mark.parametrize("stages", [3, exhaustive(12)])
def test_clients_that_remember_nothing_download_all_blocks_so_far(tiny: Tiny, stages: int) -> None:
    """Down 1 + 2 + ... + S blocks, up S: what @v3 needs because calibration moves every block."""
    forgetful = block_bytes(staged(tiny, stages, "lw_fedssl@v4", client_memory="none"))
    assert forgetful == block_bytes(staged(tiny, stages, "lw_fedssl@v3"))
    kept = block_bytes(staged(tiny, stages, "lw_fedssl@v4"))
    block = forgetful // (2 * (sum(range(stages + 1)) + stages))
    assert kept == 2 * block * (3 * stages - 1)  # newest down and up, and each finished block handed over once
