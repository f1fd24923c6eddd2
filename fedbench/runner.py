"""One cell: train, evaluate, write the run directory, mirror to W&B."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import fedbench
from fedbench.config import Config, config_hash, strategy_label
from fedbench.config.load import digest
from fedbench.encoders import Encoder, build_encoder
from fedbench.evaluation import linear_probe
from fedbench.federation.experiment import Experiment, prepare
from fedbench.federation.loop import Federation
from fedbench.federation.model import build_model
from fedbench.federation.record import LEDGER_COLUMNS, RoundRecord
from fedbench.metering.cuda_memory import largest
from fedbench.metering.forward import forward_macs
from fedbench.tracking.leaderboard import render, write
from fedbench.tracking.manifest import git_state, manifest
from fedbench.tracking.pareto import plot
from fedbench.tracking.ranking import leaderboard
from fedbench.tracking.run_directory import RunDirectory
from fedbench.tracking.runs import read_runs
from fedbench.tracking.wandb_mirror import WandbMirror


def identity(experiment: Experiment) -> str:
    """Hash of what determines a result: configuration, data, the plugins' source files, kind of device."""
    facts = [
        config_hash(experiment.config),
        experiment.dataset.content_hash,
        experiment.sources,
        experiment.device.type,
    ]
    return digest(facts)


def cell_name(experiment: Experiment) -> str:
    """Name of the run directory: what a person looks for, and the hash that makes it unique."""
    config = experiment.config
    words = [strategy_label(config)[:80], config.ssl.name[:40], config.data.name, f"seed{config.seed}"]
    plain = "-".join(re.sub(r"[^A-Za-z0-9_.@=]+", "_", word).strip("_") for word in words)
    return f"{plain}-{identity(experiment)[:8]}"


def run_cells(configs: Sequence[Config], out: Path) -> str:
    """Run cells one after the other; the leaderboard's files follow every cell. Returns its text.

    Raises:
        UserError: before the first cell runs, if any cell cannot.
    """
    for config in configs:
        prepare(config)
    text = ""
    for number, config in enumerate(configs, start=1):
        experiment = prepare(config)
        directory = RunDirectory(out / cell_name(experiment))
        start, state = perf_counter(), _finished_state(directory, identity(experiment))
        run_cell(experiment, out)
        state = state or f"{perf_counter() - start:.0f} s"
        print(f"[{number}/{len(configs)}] {directory.path.name}: {state}", file=sys.stderr)
        rows = leaderboard(read_runs(out))
        write(rows, out)
        plot(rows, out / "pareto.png")
        text = render(rows)
    return text


def _finished_state(directory: RunDirectory, cell_hash: str) -> str:
    """ "" if the cell has to be run; else what to tell, above all if other code ran it."""
    if not directory.is_finished(cell_hash):
        return ""
    then, now = directory.manifest()["commit"], git_state(Path(fedbench.__file__).parents[1])["commit"]
    other = "" if then == now else f", BY OTHER CODE (commit {then}, now {now}); remove it to run it again"
    return f"was finished already{other}"


def run_cell(experiment: Experiment, out: Path) -> RunDirectory:
    """Run one cell into `out/<cell name>`; a finished one is left as it is."""
    config, name = experiment.config, cell_name(experiment)
    directory = RunDirectory(out / name)
    if directory.is_finished(identity(experiment)):
        return directory
    torch.set_num_threads(config.threads)
    data_hash, device = experiment.dataset.content_hash, experiment.device.type
    facts = manifest(config, data_hash, experiment.sources, device, identity(experiment), name)
    directory.start(facts)
    with WandbMirror(config.tracking, name, facts["config"], directory.path) as mirror:
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
            directory.append_ledger(LEDGER_COLUMNS, record.ledger())
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
        "hand_over_bytes": sum(record.hand_over_bytes for record in records),
    }
    macs = forward_macs(config.encoder)
    cuda = largest(memory for record in records for memory in record.cuda_memory.values())
    return {
        **{f"all_clients/{key}": value for key, value in totals.items()},
        **{f"client/{key}": value / config.federation.num_clients for key, value in totals.items()},
        "client/peak_memory_bytes": max(record.peak_memory_bytes for record in records),
        **{f"client/{key}": value for key, value in cuda.items()},
        "diverged": _diverged(records),
        "memory_source": max(record.memory_source for record in records),  # "" where nobody trained
        "server/flops": sum(record.server_flops for record in records),
        "clients/num_lost": sum(record.num_lost for record in records),
        "clients/num_rejected": sum(len(record.rejected) for record in records),
        **{f"encoder/forward_macs_{counter}": value for counter, value in macs.items()},
    }


def _diverged(records: list[RoundRecord]) -> bool:
    """Whether the last round in which somebody trained left no finite loss or no usable update."""
    trained = [record for record in records if record.uploads]
    if not trained:
        return False
    last = trained[-1]
    return not math.isfinite(last.mean("loss") or 0.0) or len(last.rejected) == len(last.uploads)


def _probe(experiment: Experiment, encoder: Encoder) -> dict[str, float]:
    """The trained encoder, and the same encoder untrained: the floor."""
    config, dataset = experiment.config, experiment.dataset
    floor = build_model(config, config.encoder.depth, stage=1).encoder
    figures: dict[str, float] = {}
    for name, candidate in (("probe", encoder), ("untrained", floor)):
        scored = linear_probe(candidate.to(experiment.device), dataset, config.probe, config.seed)
        figures |= {f"{name}/{key}": value for key, value in scored.items()}
    return figures
