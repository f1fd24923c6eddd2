"""Digests of what thirteen small runs leave behind: for changes that are to change no bit.

    python benchmarks/same_bits.py > before.txt
    ... the change ...
    python benchmarks/same_bits.py | diff before.txt -

A line for each run: digests of its encoder, its ledger, its rounds and their clients without times, and its
profile. Together they cover the three strategies, both versions of LW-FedSSL, every mechanism, every SSL method,
lost and late clients, clients that keep nothing, worker processes, runs that were stopped and resumed, and a
ResNet. The digests differ from machine to machine (docs/reproduce.md); only those of one machine can be compared.
"""

import csv
import gzip
import json
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import fedbench
from fedbench.config import load_config
from fedbench.tracking.run_directory import RunDirectory

TINY: dict[str, Any] = {
    "ssl": {"name": "moco_v3", "hidden_dim": 16, "output_dim": 8},
    "encoder": {"name": "vit", "image_size": 8, "patch_size": 4, "width": 16, "depth": 3, "heads": 2},
    "data": {"name": "digits", "num_train": 120},
    "federation": {"num_clients": 3, "rounds": 6, "local_epochs": 1},
    "optimizer": {"base_lr": 1.0e-1, "batch_size": 16},
    "probe": {"epochs": 2},
    "accelerator": "cpu",
    "threads": 1,
    "tracking": {"wandb": "disabled"},
}
UNRELIABLE = {
    "num_clients": 5, "participants": 4, "rounds": 6, "dropout_before": 0.2, "dropout_after": 0.2,
    "late_clients": 1, "late_round": 3,
}  # fmt: skip
RESNET = {"name": "resnet18", "image_size": 8, "depth": 4}
RUNS: dict[str, dict[str, Any]] = {
    "FedSSL": {"strategy": "fedssl"},
    "Prog-FedSSL": {"strategy": "prog_fedssl"},
    "LW-FedSSL @v4": {"strategy": "lw_fedssl@v4"},
    "LW-FedSSL @v3": {"strategy": "lw_fedssl@v3"},
    "FedSSL, lost and late": {"strategy": "fedssl", "federation": UNRELIABLE},
    "@v3, lost and late, nothing kept": {
        "strategy": "lw_fedssl@v3",
        "federation": {**UNRELIABLE, "client_memory": "none"},
    },
    "FedSSL, MOON, two of three": {
        "strategy": {"name": "fedssl", "moon": True},
        "federation": {"participants": 2},
    },
    "@v4, MOON, depth dropout": {
        "strategy": {"name": "lw_fedssl", "moon": True, "depth_dropout": {"max_depth": 2}}
    },
    "Prog, depth dropout, processes": {
        "strategy": {"name": "prog_fedssl", "depth_dropout": {"max_depth": 2}},
        "engine": "processes",
        "workers": 2,
    },
    "@v3, MOON, lost and late, processes": {
        "strategy": {"name": "lw_fedssl", "init": "copy_previous", "calibration": True, "moon": True},
        "federation": UNRELIABLE,
        "engine": "processes",
        "workers": 2,
    },
    "Prog, BYOL, MOON, late, resumed": {
        "strategy": {"name": "prog_fedssl", "moon": True},
        "ssl": {"name": "byol"},
        "federation": UNRELIABLE,
        "stop_after": 3,
    },
    "@v3, SimCLR, proximal, resumed": {
        "strategy": {"name": "lw_fedssl", "calibration": True, "alignment": True, "proximal": True},
        "ssl": {"name": "simclr"},
        "stop_after": 4,
    },
    "Prog, ResNet-18": {
        "strategy": "prog_fedssl",
        "encoder": RESNET,
        "federation": {"num_clients": 2, "rounds": 4},
    },
}


def main() -> None:
    """Run all of them, one after the other, in a temporary folder."""
    for name, changes in RUNS.items():
        sections = dict(changes)
        stop_after = sections.pop("stop_after", None)
        config = load_config(TINY, sections)
        profile = _digest(repr(fedbench.profile(config).stages).encode())
        with tempfile.TemporaryDirectory() as folder:
            if stop_after is not None:
                rounds = fedbench.federate(config, out=folder)
                for _ in range(stop_after):
                    next(rounds)
                rounds.close()
            path = fedbench.run(config, out=folder).path
            print(f"{name:<36} {_encoder(path)} {_ledger(path)} {_rounds(path)} {profile}", flush=True)


def _encoder(path: Path) -> str:
    return _digest((path / "encoder.safetensors").read_bytes())


def _ledger(path: Path) -> str:
    with gzip.open(path / "ledger.csv.gz", "rt") as file:
        return _digest(repr(list(csv.reader(file))).encode())


def _rounds(path: Path) -> str:
    lines = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if not key.startswith("seconds/")} for line in lines]
    clients = RunDirectory(path).clients().drop_columns("seconds").to_pydict()
    return _digest(json.dumps([kept, clients]).encode())


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()[:12]


if __name__ == "__main__":
    main()
