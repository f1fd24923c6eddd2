"""A run made ready: every error that a configuration can cause is raised here, before anything is trained."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from fedbench.config.load import load_config
from fedbench.config.schema import WITH_ALL_KEYS, Config, SSLConfig
from fedbench.data import Dataset, Views, build_views, data_source, load_dataset, partition
from fedbench.encoders import load_architecture, load_transforms, num_blocks, outline, whole_encoder
from fedbench.encoders.given import given_file
from fedbench.errors import UserError
from fedbench.federation.dry_run import dry_run
from fedbench.federation.mechanism import Mechanism
from fedbench.federation.naming import whole
from fedbench.federation.plan import StagePlan, check_plans, line_up
from fedbench.federation.strategy import Strategy, load_mechanisms, load_strategy
from fedbench.files import user_path
from fedbench.numerics import require
from fedbench.plugins import blamed, source_hash
from fedbench.random import generator
from fedbench.ssl import load_ssl


@dataclass(frozen=True)
class Experiment:
    """One cell, checked and loaded.

    Attributes:
        sources: hashes of the files that define the strategy, its mechanisms and the SSL method.
        mechanisms: what the strategy is combined with.
        plans: one per stage.
        rounds_per_stage: R_s.
        evaluation_dataset: what encoders are judged on; the one of pre-training, unless another is named.
        client_indices: D^n as indices (int64) into the pre-training images.
        data_hash: of the data and of whose they are, where a file says that.
        auxiliary: the server's own images (uint8 (N, C, H, W)), of which no client has one, by the mechanism that
            asks for them.
    """

    config: Config
    sources: dict[str, str]
    strategy: Strategy
    mechanisms: list[Mechanism]
    plans: list[StagePlan]
    rounds_per_stage: list[int]
    dataset: Dataset
    evaluation_dataset: Dataset
    client_indices: list[Tensor]
    auxiliary: Mapping[str, Tensor]
    views: Views
    device: torch.device
    data_hash: str


def check(config: Config, tried: bool = False) -> tuple[Strategy, list[Mechanism], list[StagePlan], list[int]]:
    """Everything that can be checked without data: plugins, their keys, plans, rounds, accelerator, a dry run.

    Args:
        tried: whether the dry run was made, for another seed or by the process that started this one.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    strategy, mechanisms = _plugins(config)
    strategy.check(config)
    for mechanism in mechanisms:
        mechanism.check(config)
    for name, times in Counter(type(plugin).__name__ for plugin in (strategy, *mechanisms)).items():
        if times > 1:  # what plugins keep and are given goes by this name
            raise UserError(f"strategy: {times} of its plugins are classes called {name}; allowed: one of them")
    parameters = list(inspect.signature(strategy.aggregate).parameters)
    if len(parameters) != 2:
        raise UserError(
            f"strategy={config.strategy['name']}: aggregate takes {', '.join(parameters)}; "
            "allowed: aggregate(self, updates, server)"
        )
    blocks = num_blocks(config.encoder)
    with blamed(f"strategy={config.strategy['name']}, its stages and plans"):
        num_stages = strategy.num_stages(blocks)
        plans = [strategy.plan(stage, blocks) for stage in range(1, num_stages + 1)]
    check_plans(plans, blocks)
    plans = line_up(plans)
    rounds_per_stage = _rounds_per_stage(config, strategy, num_stages)
    choose_device(config.accelerator)
    check_judged(config)
    crops = config.augmentation.local_crops
    if crops and not load_ssl(config.ssl)[0].takes_crops:
        raise UserError(
            f"augmentation.local_crops={crops} with ssl.name={config.ssl.name}; allowed: 0, it takes none"
        )
    if not tried:
        dry_run(config, strategy, mechanisms, plans)
    return strategy, mechanisms, plans, rounds_per_stage


def check_judged(config: Config) -> None:
    """UserError: a protocol cannot judge the encoder."""
    if "retrieval" in config.evaluation.protocols and outline(config.encoder).num_towers != 2:
        raise UserError(
            "evaluation.protocols: retrieval is between two towers, and the encoder has one; allowed: with "
            "encoder.transforms=[two_towers], or other protocols"
        )


def _plugins(config: Config) -> tuple[Strategy, list[Mechanism]]:
    """All plugins are loaded before the first complaint, so that one run tells of all of them."""
    found, errors = dict[str, Any](), list[str]()
    loads: dict[str, Callable[[], Any]] = {
        "ssl": lambda: load_ssl(config.ssl),
        "encoder": lambda: outline(config.encoder),
        "data": lambda: data_source(config.data),
        "strategy": lambda: load_strategy(config.strategy),
        "mechanisms": lambda: load_mechanisms(config.strategy),
    }
    for key, load in loads.items():
        try:
            found[key] = load()
        except UserError as error:
            errors.append(str(error))
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))
    return found["strategy"], found["mechanisms"]


def _rounds_per_stage(config: Config, strategy: Strategy, num_stages: int) -> list[int]:
    federation, name, blocks = config.federation, config.strategy["name"], num_blocks(config.encoder)
    if federation.rounds < num_stages and (federation.rounds or num_stages > 1):
        no_rounds = "" if federation.rounds else "; for the untrained encoder (rounds=0): strategy=fedssl"
        raise UserError(
            f"federation.rounds={federation.rounds} is fewer than the {num_stages} stages of "
            f"strategy={name} with an encoder of {blocks} blocks; allowed: {num_stages} or more{no_rounds}"
        )
    given = federation.rounds_per_stage
    if given is not None and len(given) != num_stages:
        raise UserError(
            f"federation.rounds_per_stage={list(given)} has {len(given)} numbers; strategy={name} with "
            f"an encoder of {blocks} blocks has {num_stages} stages; allowed: one number for each"
        )
    if given:
        return list(given)
    own = list(strategy.rounds_per_stage(federation.rounds, num_stages))
    if len(own) != num_stages or sum(own) != federation.rounds or min(own) < min(federation.rounds, 1):
        raise UserError(
            f"strategy={name}: rounds_per_stage returned {own}; allowed: {num_stages} numbers of at least 1 that "
            f"add up to federation.rounds={federation.rounds}"
        )
    return own


def tried_before(configs: Iterable[Config]) -> Iterator[tuple[Config, bool]]:
    """Each, and whether one before it differs in its seed alone: then a dry run tells nothing new."""
    seen: set[str] = set()
    for config in configs:
        but_for_its_seed = config.model_copy(update={"seed": 0, "tuning": None}).model_dump_json()
        yield config, but_for_its_seed in seen
        seen.add(but_for_its_seed)


def prepare(config: Config, tried: bool = False) -> Experiment:
    """Check the configuration, load the data, hold out the server's part, split the rest over the clients.

    `tried`: see `check`.
    """
    require(config)
    strategy, mechanisms, plans, rounds_per_stage = check(config, tried)
    config = config.model_copy(
        update={
            "strategy": whole(config.strategy),
            "ssl": SSLConfig.model_validate(load_ssl(config.ssl)[1].model_dump()),
            "encoder": whole_encoder(config.encoder),
        }
    )
    judges, split = config.evaluation.data, config.evaluation.split
    dataset, client_indices, auxiliary = share_out(config, mechanisms, scored_as="" if judges else "data")
    if judges and split == "validation" and (judges.name, judges.path) == (config.data.name, config.data.path):
        raise UserError(
            "evaluation.split=validation with evaluation.data naming the clients' own images; allowed: without "
            "evaluation.data, so that a tenth of them is held out before the clients get theirs"
        )
    evaluation_dataset = load_dataset(judges, config.encoder, split, "evaluation.data") if judges else dataset
    return Experiment(
        config,
        _sources(config, strategy, mechanisms),
        strategy,
        mechanisms,
        plans,
        rounds_per_stage,
        dataset,
        evaluation_dataset,
        client_indices,
        auxiliary,
        build_views(config.augmentation, config.encoder.image_size, load_ssl(config.ssl)[0].num_views),
        choose_device(config.accelerator),
        _data_hash(dataset, config.data.partition.file),
    )


def share_out(
    config: Config, mechanisms: list[Mechanism], scored_as: str = ""
) -> tuple[Dataset, list[Tensor], dict[str, Tensor]]:
    """The data, the indices of each client's images in it, and the server's images; see `load_dataset`."""
    split = "test" if config.evaluation.data else config.evaluation.split
    dataset = load_dataset(config.data, config.encoder, split, scored_as)
    clients = partition(
        dataset.train_labels,
        config.federation.num_clients,
        config.data.partition,
        generator(config.seed, "partition"),
        dataset.train_names,
    )
    return dataset, *_hold_out(config, mechanisms, dataset, clients)


def _data_hash(dataset: Dataset, groups: str | None) -> str:
    """Hash of the images and labels and, where a file says whose they are, of that file."""
    if groups is None:
        return dataset.content_hash
    return sha256(dataset.content_hash.encode() + user_path(groups).read_bytes()).hexdigest()


def _sources(config: Config, strategy: Strategy, mechanisms: list[Mechanism]) -> dict[str, str]:
    plugins: dict[str, type] = {"strategy": type(strategy), "ssl": load_ssl(config.ssl)[0]}
    if config.encoder.name not in WITH_ALL_KEYS:
        plugins["encoder"] = type(load_architecture(config.encoder))
    plugins |= {f"transform {number}": type(one) for number, one in enumerate(load_transforms(config.encoder))}
    plugins |= {f"mechanism {number}": type(mechanism) for number, mechanism in enumerate(mechanisms)}
    sources = {key: source_hash(plugin) for key, plugin in plugins.items()}
    if config.encoder.init is not None:
        sources["encoder.init"] = sha256(given_file(config.encoder.init).read_bytes()).hexdigest()
    return sources


def _hold_out(
    config: Config, mechanisms: list[Mechanism], dataset: Dataset, clients: list[Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Each client's images without those of the server, and the server's: held out, or another data set's.

    They are taken out of a partition that is already drawn, so that a client has the same other images whether the
    server wants some or not. Several mechanisms that want a share have the smaller one as a part of the larger.
    """
    total = len(dataset.train_labels)
    order = torch.randperm(total, generator=generator(config.seed, "auxiliary"))
    spare = _spare(order, clients, config.data.partition.min_size)
    images, is_servers = dict[str, Tensor](), torch.zeros(total, dtype=torch.bool)
    for name, wish in server_images(mechanisms).items():
        if not isinstance(wish, float):
            section = load_config({"data": wish}).data
            images[name] = load_dataset(section, config.encoder).train_images
            continue
        size = round(wish * total)
        if not 2 <= size <= len(spare):
            raise UserError(
                f"mechanism {name}: a share of {wish} for the server is {size} of {total} images; allowed: 2 to "
                f"{len(spare)} images, so that every client keeps {config.data.partition.min_size} "
                "(data.partition.min_size)"
            )
        is_servers[spare[:size]] = True
        images[name] = dataset.train_images[spare[:size].sort().values]
    return [indices[~is_servers[indices]] for indices in clients], images


def server_images(mechanisms: Sequence[Mechanism]) -> dict[str, float | Mapping[str, Any]]:
    """What each mechanism asks for that needs images on the server: a share of the pool, or a section `data`."""
    wishes = {type(mechanism).__name__: mechanism.auxiliary() for mechanism in mechanisms}
    return {name: wish for name, wish in wishes.items() if wish is not None}


def _spare(order: Tensor, clients: list[Tensor], least: int) -> Tensor:
    """Of the images in `order`, those that can go: each client keeps the `least` of its own that come last."""
    place_of = torch.empty_like(order)
    place_of[order] = torch.arange(len(order))
    kept = torch.cat([indices[place_of[indices].argsort()[-least:]] for indices in clients])
    return order[~torch.isin(order, kept)]


def choose_device(accelerator: str) -> torch.device:
    """`auto` is torch's accelerator on this machine, if there is one.

    Raises:
        UserError: an accelerator was asked for that torch does not see here.
    """
    cpu = torch.device("cpu")
    best = torch.accelerator.current_accelerator(check_available=True) or cpu
    if accelerator not in ("auto", "cpu", best.type):
        allowed = ", ".join(dict.fromkeys(("auto", "cpu", best.type)))
        raise UserError(
            f"accelerator={accelerator!r}, but torch sees no GPU of that kind; allowed here: {allowed}"
        )
    return cpu if accelerator == "cpu" else best
