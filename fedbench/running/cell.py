"""One cell: train, evaluate, write the run directory, mirror to W&B."""

import re
import sys
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

import torch

import fedbench
from fedbench import stopping
from fedbench.config import Config, config_hash
from fedbench.config.load import digest
from fedbench.config.schema import WITH_ALL_KEYS
from fedbench.data import Views, build_views
from fedbench.encoders import Encoder, build_encoder
from fedbench.encoders.tensor_groups import encoder_part
from fedbench.evaluation import describe_features, description, evaluate, untrained_encoder
from fedbench.federation import checkpoint
from fedbench.federation.checkpoint import Checkpoint
from fedbench.federation.client_states import ClientStates
from fedbench.federation.experiment import Experiment
from fedbench.federation.federation import Federation
from fedbench.federation.mechanism import figures
from fedbench.federation.naming import strategy_label
from fedbench.federation.record import LEDGER_COLUMNS
from fedbench.files import exclusive
from fedbench.metering.forward import forward_macs
from fedbench.numerics import settle
from fedbench.plugins import short_name
from fedbench.running.needs import check_room
from fedbench.tracking.manifest import git_state, manifest
from fedbench.tracking.run_directory import CLIENTS, ENCODER, RunDirectory
from fedbench.tracking.runs import wandb_id
from fedbench.tracking.wandb_mirror import WandbMirror


def identity(experiment: Experiment, seed: int | None = None) -> str:
    """Hash of what determines a result: configuration, data, the plugins' classes and files, kind of device.

    `seed`: in place of the experiment's own.
    """
    config = _without_spellings(experiment.config)
    facts = [
        config_hash(config if seed is None else config.model_copy(update={"seed": seed})),
        experiment.data_hash,
        experiment.sources,
        experiment.device.type,
    ]
    other_data = [experiment.evaluation_dataset.content_hash] if experiment.config.evaluation.data else []
    return digest([*facts, *other_data])


def _without_spellings(config: Config) -> Config:
    """Without names, which can be written in several ways: plugins and images count by what they contain."""
    strategy = {short_name(key): value for key, value in config.strategy.items() if key != "name"}
    evaluation, other = config.evaluation, config.evaluation.data
    if other is not None:
        evaluation = evaluation.model_copy(update={"data": other.model_copy(update={"name": ""})})
    ssl, data = (section.model_copy(update={"name": ""}) for section in (config.ssl, config.data))
    encoder = config.encoder
    if encoder.name not in WITH_ALL_KEYS:
        encoder = encoder.model_copy(update={"name": ""})
    if encoder.transforms is not None:
        names = tuple({**one, "name": short_name(one["name"])} for one in encoder.transforms)
        encoder = encoder.model_copy(update={"transforms": names})
    sections = {"ssl": ssl, "encoder": encoder, "data": data, "evaluation": evaluation}
    return config.model_copy(update={"strategy": strategy, **sections})


def cell_name(experiment: Experiment) -> str:
    """Name of the run directory: what a person looks for, and the hash that makes it unique."""
    return f"{_plain_name(experiment)}-seed{experiment.config.seed}-{identity(experiment)[:8]}"


def group_name(experiment: Experiment) -> str:
    """What the seeds of a cell share, in W&B, which takes 128 letters: its name and hash without the seed."""
    return f"{_plain_name(experiment)[:119]}-{identity(experiment, seed=0)[:8]}"


def _plain_name(experiment: Experiment) -> str:
    config = experiment.config
    plugins = [re.sub(r".*/", "", name)[:40] for name in (config.ssl.name, config.data.name)]
    words = [strategy_label(config)[:80], *plugins]
    return "-".join(re.sub(r"[^A-Za-z0-9_.@=]+", "_", word).strip("_") for word in words)


def _mirror(experiment: Experiment, directory: RunDirectory) -> WandbMirror:
    """In W&B's configuration stands the manifest's, and what it takes to tell runs apart."""
    facts = directory.manifest()
    known = {key: facts.get(key) for key in ("commit", "dirty", "data_hash", "fedbench", "libraries")}
    told = {**facts["config"], "strategy_label": strategy_label(experiment.config), **known}
    tracking, name, group = experiment.config.tracking, facts["cell_name"], group_name(experiment)
    return WandbMirror(tracking, name, told, directory.path, wandb_id(facts), group=group)


def _data_facts(experiment: Experiment) -> dict[str, Any]:
    """For the manifest: what the data are called, and how many images could not be read."""
    own, judging = experiment.dataset, experiment.evaluation_dataset
    return {"data": own.facts} | ({} if judging is own else {"evaluation_data": judging.facts})


def _other_code(directory: RunDirectory) -> str:
    """Loudly, if the rounds that are there were made by another commit; else nothing."""
    then, now = directory.manifest()["commit"], git_state(Path(fedbench.__file__).parents[1])["commit"]
    return "" if then == now else f", BY OTHER CODE (commit {then}, now {now}); remove it to run it again"


class Outcome(NamedTuple):
    """How a cell ended, and what was done, in words."""

    state: Literal["finished", "diverged", "elsewhere", "failed", "stopped"]
    words: str
    is_new: bool = False  # whether there are results that were not there before


def run_cell(experiment: Experiment, out: Path) -> Outcome:
    """Run one cell in `out/<cell name>`, or what is left of it.

    Raises:
        UserError: the folder has the checkpoint of another run.
    """
    return outcome_of(cell_rounds(experiment, out))


def outcome_of(rounds: Generator[Any, None, Outcome]) -> Outcome:
    """Run them all."""
    while True:
        try:
            next(rounds)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome


def cell_rounds(experiment: Experiment, out: Path) -> Generator[dict[str, Any], None, Outcome]:
    """The same, round by round: yields each line of `rounds.jsonl` when it is on the disk, with a checkpoint.

    Closed before its end it leaves a run that can be resumed.
    """
    config, name, cell_hash = experiment.config, cell_name(experiment), identity(experiment)
    directory = RunDirectory(out / name)
    with exclusive(directory.path) as mine, ExitStack() as ends:
        if not mine:
            return Outcome("elsewhere", "is being run by another process")
        if directory.is_finished(cell_hash):
            return Outcome(_end(directory.summary()), f"was finished already{_other_code(directory)}")
        check_room(experiment)
        settle(config)
        federation = ends.enter_context(closing(Federation(experiment, directory.path / CLIENTS)))
        found, complaints = _resume(federation, directory, cell_hash)
        data_hash, device = experiment.data_hash, experiment.device.type
        described = manifest(config, data_hash, experiment.sources, device, cell_hash, name)
        described |= _data_facts(experiment)
        if found is None:
            directory.start(described)
        elif not directory.is_described():
            complaints.append("its manifest was lost and is written anew")
            directory.describe(described)
        before = found.facts["seconds"] if found else 0.0
        start = perf_counter()
        with _mirror(experiment, directory) as mirror:
            for line in directory.rounds():  # of before a stop, which W&B may not have got
                mirror.log_round(line, step=line["round"])
            for record in federation.rounds():
                now = federation.checkpoint(cell_hash)
                line = record.to_dict() | {"server/sha256": now.digest} | _now_and_then(experiment, federation)
                directory.append_clients(record.clients())
                directory.append_round(line)
                directory.append_ledger(LEDGER_COLUMNS, record.ledger())
                now.write(directory.path, marks=directory.marks(), seconds=before + perf_counter() - start)
                if config.tracking.checkpoints and now.facts["rounds_done"] % config.tracking.checkpoints == 0:
                    now.keep(directory.path)
                mirror.log_round(line, step=record.round_index)
                yield line
                if stopping.is_asked() and now.facts["rounds_done"] < config.federation.rounds:
                    raise stopping.StoppedError
            encoder = _current_encoder(federation)
            summary = _describe(experiment) | _costs(config, directory.rounds()) | _evaluate(experiment, encoder)
            summary |= _evaluate_personal(experiment, federation)
            summary |= figures(experiment.mechanisms, config, federation.course.rounds_done)
            summary["seconds"] = before + perf_counter() - start
            directory.finish(summary, encoder.state_dict())
            checkpoint.remove(directory.path)
            mirror.keep(directory.path / ENCODER)
            mirror.finish(summary)
    resumed = f"resumed after round {found.facts['rounds_done']}{_other_code(directory)}" if found else ""
    empty = summary["rounds/without_return"]
    kept = f"from {empty} round(s) no client's update was used, they kept the model" if empty else ""
    deaths = summary["workers/num_deaths"]
    died = f"{deaths} worker process(es) died, and their clients were trained again" if deaths else ""
    diverged = "DIVERGED, its figures are those of a lost cause" if summary["diverged"] else ""
    words = [f"{summary['seconds']:.0f} s", diverged, *complaints, resumed, kept, died]
    return Outcome(_end(summary), "; ".join(filter(None, words)), is_new=True)


def _end(summary: Mapping[str, Any]) -> Literal["finished", "diverged"]:
    """How a run ended that came to its end."""
    return "diverged" if summary["diverged"] else "finished"


def _resume(
    federation: Federation, directory: RunDirectory, cell_hash: str
) -> tuple[Checkpoint | None, list[str]]:
    """Bring the federation and the files to the last round that was kept whole; None to begin anew, and why."""

    states = ClientStates(directory.path / CLIENTS)

    def rewind(facts: Mapping[str, Any]) -> str:
        if damaged := states.damaged(facts["rounds_done"]):
            return f"{damaged} is not what was written"
        if states.reach_back_to(facts["rounds_done"]):
            return directory.rewind(facts["marks"])
        return "what clients kept by then is there no more"

    found, complaints = checkpoint.read(directory.path, cell_hash, rewind)
    for words in complaints:
        print(f"fedbench: {directory.path.name}: {words}", file=sys.stderr)
    if found is not None:
        federation.resume(found)
    elif complaints:
        complaints.append("it began anew")
    return found, complaints


def _current_encoder(federation: Federation) -> Encoder:
    """F with the server's values, as long as it is at this stage; the heads are thrown away."""
    return _encoder_of(federation, federation.server.state)


def _encoder_of(federation: Federation, state: Mapping[str, torch.Tensor]) -> Encoder:
    depth = federation.course.plan.depth
    with torch.random.fork_rng(devices=[]):  # building draws weights, which are not kept
        encoder = build_encoder(federation.config.encoder, depth)
    encoder.load_state_dict(encoder_part(state))
    return encoder


def _describe(experiment: Experiment) -> dict[str, Any]:
    config, dataset = experiment.config, experiment.evaluation_dataset
    return {
        "strategy": strategy_label(config),
        "ssl": config.ssl.name,
        "seed": config.seed,
        "rounds": config.federation.rounds,
        "evaluations": [description(name, dataset, config) for name in config.evaluation.protocols],
        "convention": "step",
    }


def _costs(config: Config, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Totals over the run; `client/...` is the mean over all registered clients, whether drawn or not.

    `total/flops` is everybody's: that of all clients and of the server.
    """
    costs = ("flops", "local_steps", "download_bytes", "upload_bytes", "catch_up_bytes", "hand_over_bytes")
    totals = {cost: sum(record[f"all_clients/{cost}"] for record in rounds) for cost in costs}
    server = {cost: sum(record[f"server/{cost}"] for record in rounds) for cost in ("flops", "steps")}
    cuda = [key for record in rounds[:1] for key in record if key.startswith("client/cuda_")]
    macs = forward_macs(config.encoder)
    return {
        **{f"all_clients/{key}": value for key, value in totals.items()},
        **{f"client/{key}": value / config.federation.num_clients for key, value in totals.items()},
        "client/peak_memory_bytes": max((record["client/peak_memory_bytes"] for record in rounds), default=0),
        **{key: max((one[key] for one in rounds if one[key] is not None), default=None) for key in cuda},
        "diverged": _diverged(rounds),
        "memory_source": max((record["client/memory_source"] for record in rounds), default=""),  # "": no client's
        **{f"server/{key}": value for key, value in server.items()},
        "server/peak_memory_bytes": max((record["server/peak_memory_bytes"] for record in rounds), default=0),
        "total/flops": totals["flops"] + server["flops"],
        "rounds/by_stage": list(Counter(record["stage"] for record in rounds).values()),  # one may end early
        "workers/num_deaths": sum(record["workers/num_deaths"] for record in rounds),
        "rounds/without_return": sum(not record["num_returned"] for record in rounds),
        "clients/num_lost": sum(record["num_lost"] for record in rounds),
        "clients/num_rejected": sum(record["num_rejected"] for record in rounds),
        **{f"encoder/forward_macs_{counter}": value for counter, value in macs.items()},
    }


def _diverged(rounds: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last round in which somebody trained left no finite loss or no usable update."""
    trained = [record for record in rounds if _num_trained(record)]
    if not trained:
        return False
    last = trained[-1]
    return last["train/loss"] is None or last["num_rejected"] == _num_trained(last)


def _num_trained(record: Mapping[str, Any]) -> int:
    """Clients that trained in a round, whether their updates came back or not."""
    return int(record["num_participants"] - record["num_lost_before"])


def _evaluate(experiment: Experiment, encoder: Encoder) -> dict[str, float]:
    """The trained encoder, and the same encoder untrained: the floor."""
    floor = _judged(experiment, untrained_encoder(experiment.config), "untrained", "untrained_features")
    return _judged(experiment, encoder, "probe", "features") | floor


def _evaluate_personal(experiment: Experiment, federation: Federation) -> dict[str, float]:
    """Where payloads are each client's own: the mean over all clients of what protocols say of the encoder that
    each would be sent now. Without `finetune`, which would train what a client does not have.
    """
    config, dataset = experiment.config, experiment.evaluation_dataset
    protocols = [name for name in config.evaluation.protocols if name != "finetune"]
    if federation.course.wire.personal is None:
        return {}
    sums = Counter[str]()
    for client in range(config.federation.num_clients):
        encoder = _encoder_of(federation, federation.server.sent_whole(client)).to(experiment.device)
        sums.update(evaluate(encoder, dataset, config, protocols))
    return {f"personal/{key}": value / config.federation.num_clients for key, value in sums.items()}


def _judged(experiment: Experiment, encoder: Encoder, scored_as: str, features_as: str) -> dict[str, float]:
    """What the protocols say of an encoder, and how its features lie."""
    config, dataset = experiment.config, experiment.evaluation_dataset
    encoder = encoder.to(experiment.device)
    scored = evaluate(encoder, dataset, config, config.evaluation.protocols)
    lie = describe_features(encoder, dataset.test_images, _pairs_of_views(config), config.seed)
    return {
        **{f"{scored_as}/{key}": value for key, value in scored.items()},
        **{f"{features_as}/{key}": value for key, value in lie.items()},
    }


def _pairs_of_views(config: Config) -> Views:
    """The run's augmentation, two views of an image whatever the SSL method takes."""
    augmentation = config.augmentation.model_copy(
        update={"local_crops": 0, "local_size": None, "local_scale": None}
    )
    return build_views(augmentation, config.encoder.image_size)


def _now_and_then(experiment: Experiment, federation: Federation) -> dict[str, float]:
    """After every so many rounds, top-1 and features of the encoder as it is, and the time that this took."""
    every, start = experiment.config.evaluation.every, perf_counter()
    if not every or federation.course.rounds_done % every:
        return {}
    figures = _judged(experiment, _current_encoder(federation), "probe", "features")
    shown = {key: value for key, value in figures.items() if key.startswith("features/") or key.endswith("_top1")}
    return {**shown, "seconds/evaluation": perf_counter() - start}
