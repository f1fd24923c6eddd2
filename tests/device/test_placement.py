"""Every strategy, SSL method and mechanism on a second device: the CPU's results, and no step that waits.

Two copies of every experiment are run, one on the CPU and one on the device.
"""

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from exhaustive import OF_EACH_KIND, exhaustive, stress
from safetensors.torch import save_file
from small import REAL, SMALL, Trained
from ssl_methods import OF_A_KIND, OF_THE_PAPER, fits, methods, needed
from tiny_config import TINY

from fedbench.config import load_config
from fedbench.config.load import merge
from fedbench.encoders import initial_encoder
from fedbench.plugins import builtin_files

Train = Callable[..., Trained]
STRATEGIES = ["fedssl", "prog_fedssl", "lw_fedssl@v3", "lw_fedssl@v4"]
OPTIONS = {"depth_dropout": {"max_depth": 1}}
KEEPING = {"moon", "fedu", "fedema", "scaffold", "low_rank"}  # from a client's second visit in a stage on
REFUSED = {("dsnot", "lw_fedssl@v3")}  # a server that trains pruned blocks

FURTHER = [
    *product(STRATEGIES, methods(without=set(OF_THE_PAPER)), ["proximal"]),
    *product(STRATEGIES, ["rotation"], ["orchestra"]),
]


def cases() -> Iterator[Any]:
    """All that go together; with one of the paper's methods, in turn, but in `make stress` with all."""
    mechanisms = sorted(builtin_files("mechanisms"))
    for (i, strategy), (k, mechanism) in product(enumerate(STRATEGIES), enumerate(mechanisms)):
        fitting = [ssl for ssl in OF_THE_PAPER if fits((mechanism, ssl)) and fits((strategy, ssl))]
        for place, ssl in enumerate(fitting if (mechanism, strategy) not in REFUSED else []):
            case = (strategy, ssl, mechanism)
            if place != (i + k) % len(fitting):
                yield stress(*case)
            else:
                is_quick = strategy == "lw_fedssl@v4" and mechanism in OF_EACH_KIND
                yield case if is_quick else exhaustive(*case)
    for strategy, ssl, mechanism in FURTHER:
        if fits((strategy, ssl)):
            case = (strategy, ssl, mechanism)
            is_quick = strategy == "fedssl" and ssl in (*OF_A_KIND, "rotation")
            yield case if is_quick else exhaustive(*case)


def beside(mechanism: str, folder: Path) -> dict[str, Any]:
    """What a mechanism needs besides a strategy."""
    if mechanism == "scaffold":
        return {"optimizer": {"name": "sgd", "momentum": 0.0}}
    if mechanism == "gated_tiers":
        return {"encoder": {"transforms": ["slim_gates"]}}
    if mechanism != "flasc":
        return {}
    given = folder / "given.safetensors"
    encoder = load_config(TINY, SMALL).encoder
    save_file(initial_encoder(encoder, encoder.depth, seed=1).state_dict(), given)
    return {"encoder": {"init": str(given), "transforms": ["lora"]}}


def with_mechanism(strategy: str, mechanism: str) -> dict[str, Any]:
    """Two rounds in every stage for the one that needs a second visit."""
    rounds = {"federation": {"rounds": 4}} if mechanism in KEEPING and strategy != "fedssl" else {}
    return {"strategy": {"name": strategy, mechanism: OPTIONS.get(mechanism, True)}, **rounds}


def same(one: Trained, other: Trained) -> bool:
    """Bit for bit on the stand-in, which computes on the CPU; another device rounds otherwise."""
    first, second = (done.records[0].mean("loss") for done in (one, other))
    if REAL:
        return first == pytest.approx(second, rel=1e-2)
    return first == second and all(torch.equal(value, other.values[key]) for key, value in one.values.items())


@pytest.mark.parametrize(("strategy", "ssl", "mechanism"), list(cases()))
@pytest.mark.usefixtures("accelerator")
def test_the_device_computes_what_the_cpu_does_and_no_step_waits(
    train: Train, tmp_path: Path, strategy: str, ssl: str, mechanism: str
) -> None:
    trees = merge(with_mechanism(strategy, mechanism), beside(mechanism, tmp_path))
    device, cpu = (train(trees, needed(ssl), ssl=ssl, accelerator=kind) for kind in ("auto", "cpu"))
    assert device.federation.experiment.device.type != "cpu"
    assert same(device, cpu)
    assert all(trained.waits == 0 and trained.copies <= 1 for trained in device.crossed)  # 1: an epoch's order
