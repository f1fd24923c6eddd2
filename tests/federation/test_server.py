import torch

from fedbench.encoders.tensor_groups import TensorSpec
from fedbench.federation.dispatch import Dispatch
from fedbench.federation.payload import decode
from fedbench.federation.plan import StagePlan
from fedbench.federation.server import Server
from fedbench.federation.versions import Versions

STAGE_1 = {
    "encoder.stem.w": torch.ones(2),
    "encoder.blocks.0.w": torch.ones(3),
    "encoder.norm.w": torch.ones(1),
    "encoder.reshape.weight": torch.ones(2, 1),
    "projection_head.w": torch.ones(4),
}
STAGE_2 = {
    **{key: 7 * value for key, value in STAGE_1.items()},
    "encoder.blocks.1.w": 5 * torch.ones(3),
    "encoder.reshape.weight": 6 * torch.ones(2, 2),
}


def new_server(num_clients: int) -> Server:
    return Server(Dispatch(num_clients))


def grow(server: Server, initial: dict[str, torch.Tensor], *trained: int) -> None:
    specs = {key: TensorSpec(tuple(value.shape), value.dtype, False) for key, value in initial.items()}
    server.start_stage(StagePlan(2, trained, trained), specs, initial)


def groups_in(server: Server, client: int) -> set[str]:
    from fedbench.encoders.tensor_groups import group_of

    return {
        group_of(key)
        for key in decode(server.encode(server.dispatch.download(client, StagePlan.end_to_end(9)).groups))
    }


def test_a_new_client_is_sent_everything_and_a_second_time_nothing() -> None:
    server = new_server(2)
    grow(server, STAGE_1, 0)
    assert groups_in(server, 0) == {"stem", "block_1", "norm", "reshape", "heads"}
    assert groups_in(server, 0) == set()
    assert groups_in(server, 1) == {"stem", "block_1", "norm", "reshape", "heads"}


def test_only_what_changed_is_sent_again() -> None:
    server = new_server(1)
    grow(server, STAGE_1, 0)
    server.dispatch.download(0, StagePlan.end_to_end(9))
    server.apply(
        {"encoder.norm.w": torch.zeros(1), "projection_head.w": torch.ones(4)}, aggregated=True
    )  # heads: same values
    assert groups_in(server, 0) == {"norm"}


def test_what_local_training_overwrote_is_sent_again_even_if_the_server_kept_it() -> None:
    server = new_server(2)
    grow(server, STAGE_1, 0)
    server.dispatch.download(0, StagePlan.end_to_end(9))
    server.dispatch.trained(0, StagePlan.end_to_end(2))
    assert groups_in(server, 0) == {"stem", "block_1", "norm", "reshape", "heads"}


def test_growing_keeps_values_adds_the_block_and_replaces_the_reshaping_layer() -> None:
    server = new_server(1)
    grow(server, STAGE_1, 0)
    server.dispatch.download(0, StagePlan.end_to_end(9))
    grow(server, STAGE_2, 0)
    assert groups_in(server, 0) == {"block_2", "reshape"}
    assert torch.equal(server.state["encoder.blocks.0.w"], torch.ones(3))
    assert torch.equal(server.state["encoder.reshape.weight"], 6 * torch.ones(2, 2))


def test_a_client_that_was_away_catches_up_with_what_it_lacks() -> None:
    server = new_server(2)
    grow(server, STAGE_1, 0)
    server.dispatch.download(0, StagePlan.end_to_end(9))
    server.dispatch.download(1, StagePlan.end_to_end(9))
    server.apply({"encoder.blocks.0.w": 2 * torch.ones(3)}, aggregated=True)
    server.dispatch.download(0, StagePlan.end_to_end(9))
    grow(server, STAGE_2, 0)
    assert groups_in(server, 0) == {"block_2", "reshape"}
    assert groups_in(server, 1) == {"block_1", "block_2", "reshape"}


def test_the_download_names_the_version_of_every_group_that_is_needed() -> None:
    server = new_server(1)
    grow(server, STAGE_1, 0)
    server.dispatch.download(0, StagePlan.end_to_end(9))
    server.apply({"encoder.norm.w": torch.zeros(1)}, aggregated=True)
    assert server.dispatch.download(0, StagePlan.end_to_end(9)).versions == {
        "stem": 1,
        "block_1": 1,
        "norm": 2,
        "reshape": 1,
        "heads": 1,
    }


def test_the_server_does_not_keep_the_clients_tensors_alive() -> None:
    initial = {key: value.clone() for key, value in STAGE_1.items()}
    server = new_server(1)
    grow(server, initial, 0)
    initial["encoder.norm.w"].zero_()
    assert torch.equal(server.state["encoder.norm.w"], torch.ones(1))


def test_versions_of_many_clients_cost_an_integer_each() -> None:
    versions = Versions(num_clients=10_000)
    for block in range(14):
        versions.rise(f"block_{block}", aggregated=True)
    assert sum(held.nbytes for held in versions._held.values()) == 10_000 * 14 * 4


def test_what_rose_a_round_ago_is_no_news_though_the_servers_own_step_came_last() -> None:
    """Clients returned in that round, whatever the server does after their aggregate."""
    versions = Versions(1)
    versions.rise("block_1", aggregated=True)
    versions.start_round()
    versions.rise("block_2", aggregated=True)
    versions.rise("heads", aggregated=False)
    versions.start_round()
    assert versions.news == {"block_2", "heads"}
