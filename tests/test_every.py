"""Evaluation after every so many rounds: a figure more, and not a bit of the training less."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exhaustive import all_but

from fedbench.config import Config
from fedbench.federation import checkpoint
from fedbench.federation.experiment import prepare
from fedbench.running.cell import cell_name, run_cell
from fedbench.tracking.progress import look, row
from fedbench.tracking.run_directory import RunDirectory

Tiny = Callable[..., Config]
QUICK = {"epochs": 2, "warmup_epochs": 1, "batch_size": 16}
OFTEN: dict[str, Any] = {"protocols": ["knn", "finetune"], "every": 2, "finetune": QUICK}


def run(config: Config, out: Path) -> RunDirectory:
    run_cell(prepare(config), out)
    return RunDirectory(out / cell_name(prepare(config)))


def figures(directory: RunDirectory) -> list[dict[str, float]]:
    return [
        {key: one[key] for key in one if key.startswith(("probe/", "features/"))} for one in directory.rounds()
    ]


@pytest.mark.parametrize("strategy", all_but("lw_fedssl@v3", ["fedssl", "lw_fedssl@v3"]))
def test_rounds_are_judged_and_the_training_keeps_its_bits(tiny: Tiny, tmp_path: Path, strategy: str) -> None:
    """Every second of six rounds; at LW-FedSSL's first stage the encoder has one block."""
    quiet, judged = (run(tiny(evaluation=keys, strategy=strategy), tmp_path) for keys in ({}, OFTEN))
    quiet_bits, judged_bits = ((one.path / "encoder.safetensors").read_bytes() for one in (quiet, judged))
    assert quiet_bits == judged_bits
    assert [bool(one) for one in figures(judged)] == [False, True, False, True, False, True]
    assert not any(figures(quiet))
    own = {key: judged.summary()[key] for key in figures(judged)[-1]}
    assert {"probe/knn_top1", "probe/finetune_top1", "features/uniformity"} < own.keys()
    assert figures(judged)[-1] == own
    more = ("probe", "features", "seconds")
    without = [{k: v for k, v in one.items() if not k.startswith(more)} for one in judged.rounds()]
    assert without == [{k: v for k, v in one.items() if not k.startswith("seconds")} for one in quiet.rounds()]


def test_a_resumed_run_has_the_same_figures(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(evaluation=OFTEN)
    expected = figures(run(config, tmp_path / "whole"))
    write = checkpoint.Checkpoint.write

    def stop(self: checkpoint.Checkpoint, folder: Path, **facts: object) -> None:
        if self.facts["rounds_done"] == 4:
            raise RuntimeError
        write(self, folder, **facts)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoint, "write", stop)
        with pytest.raises(RuntimeError):
            run_cell(prepare(config), tmp_path / "stopped")
    assert figures(run(config, tmp_path / "stopped")) == expected


def test_the_live_table_names_the_protocol_of_its_figure(tiny: Tiny, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.start({})
    record = {"round": 0, "seconds/round": 1.0, "seconds/evaluation": 2.0, "train/loss": 1.0}
    directory.append_round({**record, "probe/knn_top1": 0.25, "probe/linear_top1": 0.75})
    directory.append_round({**record, "seconds/evaluation": 0.0})
    state = look(directory, "", 4, running=True)
    assert row(state)[4] == "knn 25.0"
    assert state.seconds_left == pytest.approx(2 * 2.0)  # a round takes 2 s on average, its evaluation included
