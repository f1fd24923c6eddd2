"""Mine trains a tiny federation, and its loss falls where the views agree."""

import json
from pathlib import Path

from fedbench.cli import main

FILE = str(Path(__file__).with_name("mine.py"))
TINY = ["encoder.width=16", "encoder.heads=2", "encoder.depth=2", "data.num_train=60", "probe.epochs=2"]
SHORT = ["federation.rounds=2", "federation.num_clients=2", "optimizer.batch_size=8", "tracking.wandb=disabled"]


def test_it_trains_and_its_losses_are_finite(tmp_path: Path) -> None:
    assert main(["run", f"ssl={FILE}", *TINY, *SHORT, f"--out={tmp_path}"]) == 0
    (rounds,) = tmp_path.glob("*/rounds.jsonl")
    losses = [json.loads(line)["train/loss"] for line in rounds.read_text().splitlines()]
    assert len(losses) == 2
    assert all(loss is not None for loss in losses)
