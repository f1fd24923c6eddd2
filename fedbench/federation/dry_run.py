"""What plugins do with a model, tried once before any data is read: a mistake shows in seconds, not after a night.

Of the first two stages and the last one: the model and where it starts from, a client's first visit and one after
it (traced, nothing is computed), the aggregate of two clients that changed nothing, and the server's own work.
"""

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import getfile

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from fedbench.config.schema import Config
from fedbench.encoders.tensor_groups import StateDict, block_groups, by_group, is_target, select
from fedbench.errors import UserError
from fedbench.federation.aggregation import Aggregation, Memory, ServerState, check_fit
from fedbench.federation.codec import Way
from fedbench.federation.dispatch import specs_by_group
from fedbench.federation.mechanism import Mechanism
from fedbench.federation.messages import know_messages
from fedbench.federation.plan import StagePlan, finished_blocks
from fedbench.federation.server_rehearsal import ServerWork, rehearsed
from fedbench.federation.shipment import describe
from fedbench.federation.strategy import ClientUpdate, Strategy
from fedbench.federation.wire import Wire
from fedbench.metering.step import trace_edit, trace_step
from fedbench.plugins import source_hash
from fedbench.ssl import SSLMethod, load_ssl
from fedbench.training.local import untrained_task
from fedbench.training.model import build_model
from fedbench.training.server_edit import apply_edit, check_edit
from fedbench.training.visit import NOTHING_KEPT, KeptBefore, by_block

_passed: set[tuple[str, ...]] = set()  # a grid's cells differ in seed and data, and need one dry run


def dry_run(
    config: Config, strategy: Strategy, mechanisms: Sequence[Mechanism], plans: Sequence[StagePlan]
) -> None:
    """Try the plugins of a configuration.

    Raises:
        UserError: naming the plugin, the line in its file, and what is allowed.
    """
    ssl, _ = load_ssl(config.ssl)
    terms: tuple[Strategy | Mechanism, ...] = (strategy, *mechanisms)
    names = {f"ssl={config.ssl.name}": ssl, f"strategy={config.strategy['name']}": type(strategy)}
    names |= {f"mechanism {type(one).__name__}": type(one) for one in mechanisms}
    key = (_alike(config), *map(source_hash, names.values()))
    if key in _passed:
        return
    with _told(names):
        values: StateDict = {}
        memory: Memory = {}
        for stage in sorted({1, min(2, len(plans)), len(plans)}):
            model = build_model(config, plans[stage - 1].depth)
            values = _started(strategy, stage, model, values)
            _visits(config, terms, plans[stage - 1], stage, model)
            aggregation = Aggregation(strategy, mechanisms, memory)
            _aggregate(aggregation, plans[stage - 1], stage, model, values)
            _server(config, mechanisms, plans[stage - 1], finished_blocks(plans, stage), model)
    _passed.add(key)


def _alike(config: Config) -> str:
    """What a dry run depends on: all of the model, the plugins and the optimizer but how large a rate is."""
    tree = config.model_dump(
        mode="json", include={"ssl", "encoder", "augmentation", "strategy", "optimizer", "precision"}
    )
    return repr(_without_rates(tree))


def _without_rates(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_rates(one) for key, one in value.items()}
    return value != 0 if isinstance(value, float) else value


def _started(strategy: Strategy, stage: int, model: SSLMethod, before: StateDict) -> StateDict:
    """The values of a stage's model, where those of the stage before are `before`."""
    own, hook = model.online_state(), f"{type(strategy).__name__}.start_stage"
    initial = strategy.start_stage(stage, own, before)
    missing = own.keys() - initial.keys()
    if missing:
        raise UserError(f"{hook} leaves out {min(missing)!r}; allowed: values for every tensor of the model")
    check_fit(hook, initial, own)
    return {key: value.detach().clone() for key, value in initial.items()}


def _visits(
    config: Config, terms: tuple[Strategy | Mechanism, ...], plan: StagePlan, stage: int, model: SSLMethod
) -> None:
    """A client's first visit, and one behind which it finds what it then kept."""
    task = know_messages(untrained_task(config, model, plan.trained_groups, terms), config)
    batch, shape = config.optimizer.batch_size, config.encoder.image_shape

    def trace(before: KeptBefore) -> KeptBefore:
        cost = trace_step(task, batch, shape, config.precision, plan.run, plan.trained_groups, stage, before)
        return KeptBefore(True, tuple(spec for specs in cost.keeps.values() for spec in by_block(specs, plan.run)))

    kept = trace(NOTHING_KEPT)
    if kept.specs:
        trace(kept)


def _aggregate(aggregation: Aggregation, plan: StagePlan, stage: int, model: SSLMethod, values: StateDict) -> None:
    """What comes of two clients that sent back what they received."""
    parameters = frozenset(key for key, _ in model.named_parameters() if not is_target(key))
    state = ServerState(values, parameters, plan, stage, round_index=0, num_drawn=2)
    updates = (ClientUpdate(client, 1, select(values, plan.uploaded_groups)) for client in range(2))
    aggregation(updates, state)
    if next(updates, None) is not None:
        name = type(aggregation.strategy).__name__
        raise UserError(f"{name}.aggregate left updates unread; allowed: to consume them all")
    aggregation.ends_stage(state)


def _server(
    config: Config,
    mechanisms: Sequence[Mechanism],
    plan: StagePlan,
    finished: tuple[int, ...],
    model: SSLMethod,
) -> None:
    """What mechanisms do on the server: noted; edits are traced, and done on a few black images."""
    task = untrained_task(config, model, StagePlan.end_to_end(plan.depth).trained_groups)
    for mechanism in mechanisms:
        work: list[ServerWork] = []
        server = rehearsed(mechanism, plan, finished, work)
        mechanism.server_step(server)
        mechanism.end_stage(server)
        images = torch.zeros(
            8 * (mechanism.auxiliary() is not None), *config.encoder.image_shape, dtype=torch.uint8
        )
        for one in work:
            if one.function is not None:
                trace_edit(task, one.function, (len(images), *config.encoder.image_shape))
                before = {key: value.clone() for key, value in model.online_state().items()}
                apply_edit(model, one.function, images)
                check_edit(before, model.online_state(), one.groups)
    _packed(Wire(mechanisms, config.seed), finished, model)


def _packed(wire: Wire, finished: tuple[int, ...], model: SSLMethod) -> None:
    """What was made of finished blocks fits the form in which it is to travel."""
    wire.start_stage(finished)
    values, specs, way = by_group(model.online_state()), specs_by_group(describe(model)), Way("download")
    for group in sorted(block_groups(finished)):
        if wire.coded(group, specs[group], way):
            wire.pack(group, values[group], specs[group], way, 0)


@contextmanager
def _told(plugins: Mapping[str, type]) -> Iterator[None]:
    """An exception becomes a UserError with the plugin in whose file it arose last, the line, and the rule."""
    try:
        yield
    except Exception as error:
        files = {getfile(plugin): name for name, plugin in plugins.items()}
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename in files]
        is_told = isinstance(error, UserError)
        if is_told and not own:
            raise
        place = (own or frames)[-1]
        names = files[place.filename] if own else ", ".join(plugins)
        words = str(error) if is_told else f"{type(error).__name__}: {error}"
        raise UserError(f"{names}: {words} ({place.filename}, line {place.lineno}){_rule(error)}") from error


def _rule(error: Exception) -> str:
    if isinstance(error, (DataDependentOutputException, DynamicOutputShapeException)):
        return (
            "; the costs of a step are read off a trace without values; allowed: losses and hooks whose course "
            "and shapes do not depend on values (no .item(), no `if` on a tensor; torch.where instead)"
        )
    if isinstance(error, KeyError) and error.args == ("projections",):
        return "; the SSL method tells no projections of two views; allowed: without what aligns them"
    if "deepcopy" in str(error):
        return (
            "; a target branch and its cost are made by copy.deepcopy; allowed: modules that it can copy "
            "(torch.nn.utils.parametrizations.weight_norm instead of torch.nn.utils.weight_norm)"
        )
    return ""
