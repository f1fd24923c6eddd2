"""Clients in actors of Ray: the same bits, whoever trains, and whoever dies."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from exhaustive import exhaustive, stress
from ray_cluster import ray_cluster
from test_engine import CASES, Tiny, deaths, eventful, result

from fedbench.errors import UserError
from fedbench.federation.engines.on_ray import OnRay, needed
from fedbench.federation.experiment import prepare
from fedbench.federation.federation import Federation
from fedbench.running.cell import cell_name, run_cell

RAY = {"engine": "ray", "workers": 2}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One for all tests, with places for four workers."""
    with ray_cluster(4):
        yield


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["strategy"]))
@pytest.mark.parametrize("workers", [stress(1), 2, stress(4)])
def test_actors_end_with_the_bits_of_one_process(
    tiny: Tiny, tmp_path: Path, case: dict[str, Any], workers: int
) -> None:
    alone, alone_records = result(tiny(case), tmp_path / "a")
    shared, shared_records = result(tiny(case, engine="ray", workers=workers), tmp_path / "b")
    assert all(torch.equal(alone[key], shared[key]) for key in alone.keys() | shared.keys())
    assert alone_records == shared_records


@pytest.mark.exhaustive
def test_an_actor_that_dies_is_replaced_and_its_client_trained_again(tiny: Tiny, tmp_path: Path) -> None:
    undisturbed, records = result(eventful(tiny, tmp_path, "none"), tmp_path)
    disturbed, again = result(eventful(tiny, tmp_path, "dies twice").model_copy(update=RAY), tmp_path)
    assert len(list(tmp_path.glob("mark*"))) == 2
    assert all(torch.equal(undisturbed[key], disturbed[key]) for key in undisturbed)
    assert deaths(again) == 2
    assert [one | {"workers/num_deaths": 0} for one in again] == records


@pytest.mark.exhaustive
def test_an_actor_that_is_stopped_is_given_up_after_its_time(tiny: Tiny, tmp_path: Path) -> None:
    config = eventful(tiny, tmp_path, "hangs", timeout=2).model_copy(update=RAY)
    with pytest.raises(RuntimeError, match=r"3 worker .* was killed after 2 s without an answer"):
        result(config, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("event", "error"), [("user's fault", UserError), exhaustive("raises", RuntimeError)])
def test_what_goes_wrong_in_an_actor_is_told_here(
    tiny: Tiny, tmp_path: Path, event: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match="tau=0; allowed: above 0" if error is UserError else "by itself"):
        result(eventful(tiny, tmp_path, event).model_copy(update=RAY), tmp_path)


@pytest.mark.exhaustive
def test_a_payload_is_put_into_the_store_once_whatever_the_number_of_clients(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(RAY, federation={"num_clients": 6, "rounds": 2})
    import ray

    with closing(Federation(prepare(config), tmp_path)) as federation:
        with patch("ray.put", side_effect=ray.put) as put:
            records = list(federation.rounds())
        sizes = [len(call.args[0]) for call in put.call_args_list]
        payload = len(federation.server.encode(list(federation.course.dispatch.groups)))
    assert sum(record.download_bytes for record in records) == 12 * payload
    assert sizes.count(payload) == 2  # once in a round
    assert sum(sizes) < 2.1 * payload


@pytest.mark.exhaustive
def test_nothing_is_left_of_an_engine_that_is_closed(tiny: Tiny, tmp_path: Path) -> None:
    import ray  # not before the cluster, which chooses its environment

    federation = Federation(prepare(tiny(RAY)), tmp_path / "clients")
    engine = federation.engine
    assert isinstance(engine, OnRay)
    next(federation.rounds())
    workers = [actor.handle for actor in engine._actors]
    federation.close()
    for worker in workers:
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(worker.arrive.remote())
    assert not (tmp_path / "clients").exists()
    assert ray.is_initialized()  # it was there before


@pytest.mark.exhaustive
def test_a_cell_whose_clients_keep_something_leaves_what_it_leaves_in_one_process(
    tiny: Tiny, tmp_path: Path
) -> None:
    change = {"strategy": {"name": "fedssl", "moon": True}}
    name = cell_name(prepare(tiny(change)))
    run_cell(prepare(tiny(change)), tmp_path / "a")
    run_cell(prepare(tiny(change, **RAY)), tmp_path / "b")
    for file in ("encoder.safetensors", "ledger.csv.gz"):
        assert (tmp_path / "a" / name / file).read_bytes() == (tmp_path / "b" / name / file).read_bytes()
    kept = [sorted(path.name for path in (tmp_path / out / name).rglob("*")) for out in ("a", "b")]
    assert kept[0] == kept[1]


@pytest.mark.exhaustive
def test_a_client_that_keeps_something_needs_a_folder_that_its_node_sees(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny({"strategy": {"name": "fedssl", "moon": True}}, **RAY)
    federation = Federation(prepare(config), tmp_path)
    engine = federation.engine
    assert isinstance(engine, OnRay)
    for name in tmp_path.iterdir():
        name.rename(tmp_path / "elsewhere")  # the marker, before an actor looks for it
    with closing(federation), pytest.raises(UserError, match=r"client \d keeps tensors .* does not see the run's"):
        list(federation.rounds())


def test_workers_take_the_clusters_processors_and_share_its_gpus(tiny: Tiny) -> None:
    config = tiny(RAY, threads=2)
    assert needed(config, "cpu", 3, {"CPU": 6.0}) == {"num_cpus": 2, "num_gpus": 0}
    assert needed(config, "cuda", 2, {"CPU": 64.0, "GPU": 2.0})["num_gpus"] == 1
    assert needed(config, "cuda", 8, {"CPU": 64.0, "GPU": 2.0})["num_gpus"] == 0.25
    assert needed(config, "cuda", 3, {"CPU": 64.0, "GPU": 2.0})["num_gpus"] == 0.5  # two of three on one of them
    with pytest.raises(UserError, match="workers=4 threads=2 needs 8 CPUs; the cluster has 7"):
        needed(config, "cpu", 4, {"CPU": 7.0})
    with pytest.raises(UserError, match="the cluster has no GPU"):
        needed(config, "cuda", 1, {"CPU": 7.0})
