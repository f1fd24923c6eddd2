"""Points of reference as ordinary cells: untrained, supervised from scratch, centralised."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_config import TINY

from fedbench.cli import main
from fedbench.config import Config
from fedbench.errors import UserError
from fedbench.evaluation import untrained_encoder
from fedbench.federation.experiment import prepare
from fedbench.profiling import profile
from fedbench.reporting.report import report
from fedbench.running.cell import cell_name, run_cell
from fedbench.running.cells import run_cells
from fedbench.tracking.run_directory import RunDirectory

Tiny = Callable[..., Config]
NO_ROUNDS: dict[str, Any] = {"federation": {"rounds": 0}}
ONE_CLIENT: dict[str, Any] = {"federation": {"num_clients": 1}}
FINETUNE = {"protocols": ["linear", "finetune"], "finetune": {"epochs": 2, "warmup_epochs": 1, "batch_size": 16}}


def run(config: Config, out: Path) -> RunDirectory:
    run_cell(prepare(config), out)
    return RunDirectory(out / cell_name(prepare(config)))


def test_a_run_of_no_rounds_is_the_untrained_encoder_and_costs_nothing(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(NO_ROUNDS)
    directory = run(config, tmp_path)
    saved, floor = load_file(directory.path / "encoder.safetensors"), untrained_encoder(config).state_dict()
    assert all(torch.equal(saved[key], floor[key]) for key in floor)
    summary = directory.summary()
    costs = ("flops", "download_bytes", "upload_bytes", "peak_memory_bytes")
    assert [summary[f"client/{cost}"] for cost in costs] == [0, 0, 0, 0]
    assert summary["probe/linear_top1"] == summary["untrained/linear_top1"]
    assert directory.path.name.startswith("untrained-")
    assert directory.rounds() == []


def test_the_profile_of_no_rounds_is_zero(tiny: Tiny) -> None:
    cost = profile(tiny(NO_ROUNDS))
    figures = [cost.total(figure, "step") for figure in ("flops", "download_bytes", "upload_bytes")]
    assert [*figures, cost.peak_memory_bytes] == [0, 0, 0, 0]


def test_no_rounds_of_a_strategy_with_stages_are_refused_with_a_way_out(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"rounds=0 .* strategy=lw_fedssl .*\(rounds=0\): strategy=fedssl"):
        prepare(tiny(NO_ROUNDS, strategy="lw_fedssl"))


def test_one_client_has_all_the_data(tiny: Tiny) -> None:
    for name in ("iid", "dirichlet"):
        experiment = prepare(tiny(ONE_CLIENT, data={"partition": {"name": name}}))
        (indices,) = experiment.client_indices
        assert indices.tolist() == list(range(60))


@pytest.mark.costs
def test_references_stand_unranked_in_the_table_of_the_federations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "grid.yaml"
    cells = [{"strategy": "fedssl"}, {"strategy": "lw_fedssl"}, NO_ROUNDS, ONE_CLIENT]
    grid.write_text(yaml.safe_dump({"base": {**TINY, "evaluation": FINETUNE}, "cells": cells}))
    words = ["run", "--grid", str(grid), "--out", str(tmp_path / "out")]
    assert main([*words, "--dry-run"]) == 0
    table = capsys.readouterr().out
    assert "untrained-" in table
    assert "| federation.num_clients=1 federation.rounds=" in table  # what tells the reference from the federation
    assert main(words) == 0
    assert main(["report", str(tmp_path / "out"), "--out", str(tmp_path / "report")]) == 0
    rows = json.loads((tmp_path / "report" / "report.json").read_text())["rows"]
    found = {(row["protocol"], row["strategy"]): row for row in rows}
    assert len(rows) == len(found) == 8
    for protocol, untrained in (("linear", "untrained"), ("finetune", "supervised from scratch")):
        kinds = {name: row["reference"] for (one, name), row in found.items() if one == protocol}
        central = {"fedssl (centralised)": "centralised"}
        assert kinds == {"fedssl": "", "lw_fedssl@v4": "", untrained: "untrained", **central}
        row = found[protocol, untrained]
        assert (row["gain"], row["flops"], row["pareto_front"], row["variant"]) == (0, 0, [], "")
        assert found[protocol, "fedssl (centralised)"]["variant"] == ""
    table = {row["table"] for row in rows if row["protocol"] == "linear"}
    assert len(table) == 1


def test_supervised_from_scratch_is_the_floor_of_finetune(tiny: Tiny, tmp_path: Path) -> None:
    scratch, federated = (run(tiny(keys, evaluation=FINETUNE), tmp_path).summary() for keys in (NO_ROUNDS, {}))
    assert scratch["probe/finetune_top1"] == federated["untrained/finetune_top1"]


def test_only_untrained_runs_still_make_a_report(tiny: Tiny, tmp_path: Path) -> None:
    run_cells([tiny(NO_ROUNDS)], tmp_path / "out")
    assert "| -   | untrained" in report([tmp_path / "out"], tmp_path / "report")
