"""Which groups travel when: read off the payloads of whole runs."""

from collections.abc import Callable

import pytest

from fedbench.config import Config
from fedbench.conformance.witness import Visit, Witness
from fedbench.federation.experiment import prepare
from fedbench.federation.plan import group_of

ALWAYS = {"norm", "heads"}
Tiny = Callable[..., Config]


def downloads(config: Config) -> list[set[str]]:
    """Groups in the payload of client 0, round by round."""
    return [{group_of(key) for key in visit.payload} for visit in visits(config) if visit.client == 0]


def visits(config: Config) -> list[Visit]:
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


@pytest.fixture
def twelve_stages(tiny: Tiny) -> Callable[..., Config]:
    small = {"encoder": {"depth": 12, "width": 8}, "federation": {"num_clients": 2, "rounds": 12}}
    return lambda strategy, **federation: tiny(small, {"federation": federation}, strategy=strategy)


def test_at_twelve_stages_the_encoders_traffic_is_the_papers(twelve_stages: Callable[..., Config]) -> None:
    """[LW] v3: 24 / 7.5 = 3.2 for LW-FedSSL, 24 / 13 = 1.85 for Prog-FedSSL, exactly."""
    whole = block_bytes(twelve_stages("fedssl"))
    assert whole * 2 * 7.5 == block_bytes(twelve_stages("lw_fedssl@v3")) * 2 * 24
    assert whole * 13 == block_bytes(twelve_stages("prog_fedssl")) * 24


def test_clients_that_remember_nothing_download_all_blocks_so_far(twelve_stages: Callable[..., Config]) -> None:
    """Down 1 + 2 + ... + 12 blocks, up 12: what @v3 needs because calibration moves every block."""
    forgetful = block_bytes(twelve_stages("lw_fedssl@v4", client_memory="none"))
    assert forgetful == block_bytes(twelve_stages("lw_fedssl@v3"))
    kept = block_bytes(twelve_stages("lw_fedssl@v4"))
    block = forgetful // (2 * (78 + 12))
    assert kept == 2 * block * (12 + 12 + 11)  # newest down and up, and each finished block handed over once
