"""One cell: train, evaluate, write the run directory, mirror to W&B."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import Tensor
from tqdm import tqdm

from fedbench.config import Config, config_hash, resolve_file
from fedbench.config.load import read_yaml
from fedbench.encoders import Encoder, build_encoder
from fedbench.evaluation import linear_probe
from fedbench.federation.experiment import Experiment, prepare
from fedbench.federation.loop import Federation
from fedbench.federation.model import build_model
from fedbench.federation.record import RoundRecord
from fedbench.metering import forward_macs
from fedbench.tracking.leaderboard import render, write
from fedbench.tracking.manifest import manifest
from fedbench.tracking.pareto import plot
from fedbench.tracking.ranking import leaderboard
from fedbench.tracking.run_directory import RunDirectory
from fedbench.tracking.runs import read_runs
from fedbench.tracking.wandb_mirror import WandbMirror


def strategy_label(config: Config) -> str:
    """Name of the strategy or its preset, and what was changed: `lw_fedssl@v3(alignment=None)`."""
    preset = config.strategy.get("preset")
    known = read_yaml(resolve_file(preset, "strategies")) if preset else {"name": config.strategy["name"]}
    changed = {key: value for key, value in config.strategy.items() if key != "preset"}
    fields = ", ".join(f"{key}={value}" for key, value in changed.items() if known.get(key) != value)
    name = preset or re.sub(r".*/|\.py\b", "", config.strategy["name"])
    return f"{name}({fields})" if fields else name


def cell_name(config: Config) -> str:
    """Name of the run directory: what a person looks for, and the hash that makes it unique."""
    words = [strategy_label(config), config.ssl.name, config.data.name, f"seed{config.seed}"]
    plain = "-".join(re.sub(r"[^A-Za-z0-9_.@=]+", "_", word).strip("_") for word in words)
    return f"{plain}-{config_hash(config)[:8]}"


def run_cells(configs: Sequence[Config], out: Path) -> str:
    """Run cells one after the other; the leaderboard's files follow every cell. Returns its text.

    Raises:
        UserError: before the first cell runs, if any cell cannot.
    """
    for config in configs:
        prepare(config)
    text = ""
    for number, config in enumerate(configs, start=1):
        start = perf_counter()
        done = RunDirectory(out / cell_name(config)).is_finished(config_hash(config))
        directory = run_cell(config, out)
        state = "was finished already" if done else f"{perf_counter() - start:.0f} s"
        print(f"[{number}/{len(configs)}] {directory.path.name}: {state}", file=sys.stderr)
        rows = leaderboard(read_runs(out))
        write(rows, out)
        plot(rows, out / "pareto.png")
        text = render(rows)
    return text


def run_cell(config: Config, out: Path) -> RunDirectory:
    """Run one cell into `out/<cell name>`; a finished one with the same configuration is left as it is.

    Raises:
        UserError: before anything is written, if the configuration or the data do not allow the run.
    """
    directory = RunDirectory(out / cell_name(config))
    if directory.is_finished(config_hash(config)):
        return directory
    experiment = prepare(config)
    facts = manifest(config, experiment.dataset.content_hash, cell_name(config))
    directory.start(facts)
    with WandbMirror(config.tracking, cell_name(config), facts["config"], directory.path) as mirror:
        start = perf_counter()
        federation = Federation(experiment, directory.path / "clients")
        records = _train(federation, directory, mirror)
        encoder = _final_encoder(config, federation.server.state)
        summary = _describe(config) | _costs(config, records) | _probe(experiment, encoder)
        summary["seconds"] = perf_counter() - start
        directory.finish(summary, encoder.state_dict())
        mirror.finish(summary)
    return directory


def _train(federation: Federation, directory: RunDirectory, mirror: WandbMirror) -> list[RoundRecord]:
    records = []
    total = federation.config.federation.rounds
    with tqdm(total=total, desc=directory.path.name, unit="round", disable=None, leave=False) as bar:
        for record in federation.rounds():
            records.append(record)
            directory.append_round(record.to_dict())
            mirror.log_round(record.to_dict(), step=record.round_index)
            if not record.returned:
                bar.write(f"round {record.round_index}: no client returned, the model is kept", file=sys.stderr)
            bar.set_postfix(stage=record.stage, loss=record.mean("loss"))
            bar.update()
    return records


def _final_encoder(config: Config, state: Mapping[str, Tensor]) -> Encoder:
    """F with the server's values; the heads are thrown away."""
    encoder = build_encoder(config.encoder, config.encoder.depth)
    prefix = "encoder."
    encoder.load_state_dict({key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)})
    return encoder


def _describe(config: Config) -> dict[str, Any]:
    return {
        "strategy": strategy_label(config),
        "ssl": config.ssl.name,
        "seed": config.seed,
        "rounds": config.federation.rounds,
        "protocol": "linear",
        "convention": "step",
    }


def _costs(config: Config, records: list[RoundRecord]) -> dict[str, Any]:
    """Totals over the run; `client/...` is the mean over all registered clients, whether drawn or not."""
    totals = {
        "flops": sum(record.flops for record in records),
        "download_bytes": sum(record.download_bytes for record in records),
        "upload_bytes": sum(record.upload_bytes for record in records),
        "catch_up_bytes": sum(record.catch_up_bytes for record in records),
    }
    macs = forward_macs(config.encoder)
    return {
        **{f"all_clients/{key}": value for key, value in totals.items()},
        **{f"client/{key}": value / config.federation.num_clients for key, value in totals.items()},
        "client/peak_memory_bytes": max(record.peak_memory_bytes for record in records),
        "memory_source": max(record.memory_source for record in records),  # "" where nobody trained
        "server/flops": sum(record.server_flops for record in records),
        "clients/num_lost": sum(record.to_dict()["num_lost"] for record in records),  # type: ignore[misc]
        "clients/num_rejected": sum(len(record.rejected) for record in records),
        **{f"encoder/forward_macs_{counter}": value for counter, value in macs.items()},
    }


def _probe(experiment: Experiment, encoder: Encoder) -> dict[str, float]:
    """The trained encoder, and the same encoder untrained: the floor."""
    config, dataset = experiment.config, experiment.dataset
    floor = build_model(config, config.encoder.depth, stage=1).encoder
    figures: dict[str, float] = {}
    for name, candidate in (("probe", encoder), ("untrained", floor)):
        scored = linear_probe(candidate.to(experiment.device), dataset, config.probe, config.seed)
        figures |= {f"{name}/{key}": value for key, value in scored.items()}
    return figures
