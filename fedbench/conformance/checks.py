"""What every strategy must keep to, whatever it does; each check looks where its fault would show.

A check takes a finished `Trial` and returns what is wrong, or None.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import torch
from torch import Tensor

from fedbench.config.schema import Config
from fedbench.conformance.witness import Observation, Witness
from fedbench.encoders import num_blocks
from fedbench.encoders.tensor_groups import HEADS, Specs, StateDict, by_group, group_of, on_wire, travelling
from fedbench.federation.aggregation import Aggregation, ServerState
from fedbench.federation.codec import Way
from fedbench.federation.dispatch import specs_by_group
from fedbench.federation.experiment import Experiment, prepare
from fedbench.federation.messages import know_messages, zeros
from fedbench.federation.payload import encode
from fedbench.federation.shipment import describe
from fedbench.federation.strategy import ClientUpdate, Strategy
from fedbench.federation.versions import NOTHING
from fedbench.federation.wire import Wire, added
from fedbench.training.local import (
    LocalStep,
    LocalTask,
    Received,
    Term,
    build_fabric,
    gradient_on,
    untrained_task,
)
from fedbench.training.model import build_model
from fedbench.training.visit import VisitHooks, blank


@dataclass(frozen=True)
class Finding:
    """What is wrong: what was expected, what was seen, and where to look."""

    expected: str
    seen: str
    where: str


class Trial:
    """A strategy's tiny run, watched on the clients."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.experiment: Experiment = prepare(config)
        self.strategy: Strategy = self.experiment.strategy
        self.witness = Witness(self.experiment)
        self._specs: dict[int, dict[str, Specs]] = {}

    @property
    def wire(self) -> Wire:
        """The codecs."""
        return self.witness.federation.course.wire

    def specs(self, stage: int) -> dict[str, Specs]:
        """The tensors of each group of a stage's model."""
        if stage not in self._specs:
            model = build_model(self.config, self.experiment.plans[stage - 1].depth)
            self._specs[stage] = specs_by_group(describe(model))
        return self._specs[stage]

    @property
    def visits(self) -> list[Observation]:
        """Every visit of every client, in order."""
        return self.witness.visits


Check = Callable[[Trial], Finding | None]


def where(visit: Observation) -> str:
    """Stage, round and client of a visit."""
    return f"stage {visit.stage}, round {visit.round_index}, client {visit.client}"


def differing(one: StateDict, other: StateDict, keys: Iterable[str]) -> list[str]:
    """Keys whose tensors are not the same bits."""
    return [key for key in keys if key not in one or key not in other or not torch.equal(one[key], other[key])]


def short(names: Iterable[str]) -> str:
    """The first names of a list, and how many more."""
    listed = sorted(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more if listed else "none"


def plan_is_coherent(trial: Trial) -> Finding | None:
    """The encoder never shrinks, ends whole, and every block is trained at some stage."""
    plans, blocks = trial.experiment.plans, num_blocks(trial.config.encoder)
    depths = [plan.depth for plan in plans]
    if depths != sorted(depths) or depths[-1] != blocks:
        return Finding(f"depths that rise to {blocks}", f"{depths}", "plan: depth")
    untrained = set(range(blocks)).difference(*(plan.trainable for plan in plans))
    if untrained:
        return Finding(
            "every block trained at some stage", f"never trained: {sorted(untrained)}", "plan: trainable"
        )
    return None


def client_trains_what_is_planned(trial: Trial) -> Finding | None:
    """On the client: every planned parameter changes; everything else keeps its bits, buffers included."""
    method = trial.witness.federation.worker.task.method  # type: ignore[union-attr]
    parameters, ways = {name for name, _ in method.named_parameters()}, method.encoder.ways
    for visit in trial.visits:
        changed = set(differing(visit.before, visit.after, visit.before))
        planned = {key for key in visit.before if group_of(key) in visit.plan.trained_groups}
        frozen_but_changed = changed - planned
        if frozen_but_changed:
            return Finding("frozen tensors unchanged", f"changed: {short(frozen_but_changed)}", where(visit))
        apart = {key for key in planned if ways.is_apart(key, visit.plan.way)}
        idle = (planned & parameters) - changed - apart
        if idle:
            return Finding("every planned parameter trained", f"unchanged: {short(idle)}", where(visit))
    return None


def upload_is_what_was_trained(trial: Trial) -> Finding | None:
    """The upload holds the trained groups, all of them and no other, with the values that training ended with."""
    for visit in trial.visits:
        trained = {key for key in visit.after if group_of(key) in visit.plan.trained_groups}
        lost, idle = trained - set(visit.upload), set(visit.upload) - trained
        if lost:
            return Finding(
                "all that was trained is uploaded", f"trained, not uploaded: {short(lost)}", where(visit)
            )
        if idle:
            return Finding(
                "only what was trained is uploaded", f"uploaded, not trained: {short(idle)}", where(visit)
            )
        wrong = differing(
            visit.upload,
            visit.after,
            _as_they_are(trial, trial.wire.way("upload", visit.client), visit.stage, visit.upload),
        )
        if wrong:
            return Finding("uploaded values are the trained ones", f"differ: {short(wrong)}", where(visit))
    return None


def _as_they_are(trial: Trial, way: Way, stage: int, state: StateDict) -> list[str]:
    """Keys of what does not travel packed on this way, where values may be lost on purpose."""
    ways = (way, Way("download", way.tier))  # what the download lost is made up for in the upload
    coded = [trial.wire.coded(group, specs, one) for one in ways for group, specs in trial.specs(stage).items()]
    return [key for key in state if not any(key in specs for specs in coded)]


def clients_start_from_payloads_alone(trial: Trial) -> Finding | None:
    """Each client's start is the server's model, put together from the payloads sent to it and nothing else.

    A replay keeps what each client can hold: what it was sent, then what it trained. Where codecs lose something,
    what the server says that it sent is compared with what the payload, unpacked once more, makes of it.
    """
    stores: dict[int, StateDict] = {}
    for visit in trial.visits:
        store = stores.setdefault(visit.client, {})
        store.update(_unpacked(trial, visit, store))
        needed = [key for key in visit.sent if group_of(key) in visit.needed]
        uncounted = differing(store, visit.before, needed)
        if uncounted:
            return Finding("weights arrive as payload", f"arrived otherwise: {short(uncounted)}", where(visit))
        unequal = differing(visit.sent, visit.before, needed)
        if unequal:
            return Finding("all clients start from the server's model", f"differ: {short(unequal)}", where(visit))
        way = trial.wire.way("download", visit.client)  # of what it is sent changes of it keeps what it received
        trained = {key: value for key, value in visit.after.items() if key in store}
        store.update({k: v for k, v in trained.items() if not trial.wire.sends_changes(group_of(k), way)})
    return None


def _unpacked(trial: Trial, visit: Observation, store: StateDict) -> StateDict:
    """What a client has after a payload, who had `store` before."""
    parts, values = by_group(visit.payload), StateDict()
    wire = trial.wire.of_client(visit.client, visit.codec_state)
    for group, part in parts.items():
        if group not in visit.bases:
            values |= part
            continue
        specs = trial.specs(visit.stage)[group]
        before = store if visit.bases[group] != NOTHING else {}
        values |= added(before, wire.unpack(group, part, specs, wire.way("download", visit.client)))
        values |= {key: value for key, value in part.items() if not on_wire(key)}
    return values


def heads_are_synchronised(trial: Trial) -> Finding | None:
    """Heads travel in both directions in every visit."""
    for visit in trial.visits:
        heads = {key for key in visit.server if group_of(key) == HEADS}
        for name, state in (("download", visit.payload), ("upload", visit.upload)):
            if HEADS not in visit.bases and heads - set(state):
                return Finding(f"heads in every {name}", f"missing: {short(heads - set(state))}", where(visit))
    return None


def bytes_are_counted(trial: Trial) -> Finding | None:
    """The records' bytes are the lengths of the payloads, which are what the tensors in them serialise to."""
    for record in trial.witness.records:
        visits = [visit for visit in trial.visits if visit.round_index == record.round_index]
        sent = [visit for visit in visits if visit.client not in record.participation.lost_after]
        for name, seen in (("download", visits), ("upload", sent)):
            lengths = sum(getattr(visit, f"{name}_bytes") for visit in seen)
            states = [visit.payload if name == "download" else visit.reply for visit in seen]
            tensors = sum(len(encode(state)) for state in states)
            counted = getattr(record, f"{name}_bytes")
            if not counted == lengths == tensors:
                return Finding(
                    f"{name} bytes = {lengths}, the payloads' length",
                    f"recorded {counted}, serialised anew {tensors}",
                    f"round {record.round_index}",
                )
    return None


def server_state(trial: Trial, visit: Observation, num_drawn: int = 3) -> ServerState:
    """The server at a visit; its plugins remember nothing."""
    specs = trial.witness.federation.course.dispatch.specs
    parameters = frozenset(key for key in visit.server if key not in specs or not specs[key].is_buffer)
    plan = trial.experiment.plans[visit.stage - 1]
    where = (plan, visit.stage, visit.round_index)
    clients = trial.config.federation.num_clients
    return ServerState(visit.server, parameters, *where, num_drawn, num_clients=clients, seed=trial.config.seed)


def aggregate(trial: Trial, updates: Iterable[ClientUpdate]) -> StateDict:
    """What the strategy alone makes of updates in the first round."""
    return trial.strategy.aggregate(iter(updates), server_state(trial, trial.visits[0]))


def aggregation_weights_sum_to_one(trial: Trial) -> Finding | None:
    """Equal updates are averaged to themselves, however many samples stand behind each."""
    update = trial.visits[0].upload
    updates = [ClientUpdate(client, samples, update) for client, samples in enumerate((1, 3, 7))]
    merged = aggregate(trial, updates)
    wrong = [key for key in update if not _close(merged.get(key), update[key])]
    if wrong:
        return Finding(
            "the mean of equal updates is that update", f"differs: {short(wrong)}", "aggregate: weights"
        )
    return None


def _close(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.shape == other.shape and torch.allclose(one.double(), other.double())


def aggregation_survives_few_clients(trial: Trial) -> Finding | None:
    """No client: the model is kept. One client: the server takes its values."""
    try:
        merged = aggregate(trial, [])
    except Exception as error:
        return Finding("no exception when no client returns", f"{type(error).__name__}: {error}", "aggregate")
    if merged:
        return Finding("nothing changes when no client returns", f"values for {short(merged)}", "aggregate")
    update = trial.visits[0].upload
    alone = aggregate(trial, [ClientUpdate(0, 5, update)])
    wrong = differing(alone, update, update)
    if wrong:
        return Finding("one client's values are taken over", f"differ: {short(wrong)}", "aggregate")
    return None


def aggregation_ignores_the_order(trial: Trial) -> Finding | None:
    """Which client returns first is chance: the aggregate of unequal updates does not depend on it."""
    update = trial.visits[0].upload
    other = {key: value + 1 for key, value in update.items()}
    updates = [ClientUpdate(0, 5, update), ClientUpdate(1, 2, other)]
    merged, reversed_ = (aggregate(trial, order) for order in (updates, updates[::-1]))
    wrong = [key for key, value in merged.items() if not _close(reversed_.get(key), value)]
    if wrong:
        return Finding(
            "the same aggregate in every order", f"differ: {short(wrong)}", "aggregate: order of updates"
        )
    return None


def server_takes_the_aggregate(trial: Trial) -> Finding | None:
    """After averaging the server holds what `aggregate` makes of the updates that returned, and nothing else."""
    again = Aggregation(trial.strategy, trial.experiment.mechanisms, {})
    for record, after in zip(trial.witness.records, trial.witness.aggregated, strict=True):
        visits = [visit for visit in trial.visits if visit.round_index == record.round_index]
        used = [visit for visit in visits if visit.returned]
        sizes = {visit.client: len(trial.experiment.client_indices[visit.client]) for visit in used}
        updates = [
            ClientUpdate(visit.client, sizes[visit.client], visit.upload, holds=visit.holds) for visit in used
        ]
        if not visits:
            continue
        server = server_state(trial, visits[0], len(record.participation.drawn))
        expected = visits[0].server | again(iter(updates), server)
        wrong = differing(expected, after, expected)
        if wrong:
            return Finding(
                "the server's model is the aggregate", f"differ: {short(wrong)}", f"round {record.round_index}"
            )
    return None


def growing_keeps_earlier_blocks(trial: Trial) -> Finding | None:
    """At a stage boundary every block, the stem, the norm and the heads keep the values of the round before."""
    stages = [record.stage for record in trial.witness.records]
    for visit in trial.visits:
        previous = visit.round_index - 1
        if previous < 0 or stages[previous] == visit.stage:
            continue
        discarded = {"reshape", *trial.strategy.begins_anew(visit.stage)}
        before = trial.witness.final[previous]  # a codec's losses are final for a block that is handed over
        kept = [
            key
            for key in _as_they_are(trial, trial.wire.way("download", visit.client), visit.stage - 1, before)
            if group_of(key) not in discarded
        ]
        wrong = differing(trial.witness.final[previous], visit.server, kept)
        if wrong:
            return Finding("a grown encoder keeps its earlier blocks", f"changed: {short(wrong)}", where(visit))
    return None


def same_seed_gives_same_bits(trial: Trial) -> Finding | None:
    """A second run ends with the same tensors, and so does one whose clients train in the opposite order."""
    # the order of a sum may differ in the last bit; a client's own training, in the first round, may not
    for name, reverse, rounds in (("a second run", False, None), ("clients in the opposite order", True, 1)):
        again = Witness(trial.experiment, reverse, rounds, trial.witness.federation.costs)
        uploads = {(visit.round_index, visit.client): visit.upload for visit in again.visits}
        for visit in trial.visits:
            if visit.round_index > 0 and reverse:
                break
            wrong = differing(visit.upload, uploads[visit.round_index, visit.client], visit.upload)
            if wrong:
                return Finding(f"{name}: same bits", f"differ: {short(wrong)}", where(visit))
    return None


def another_seed_gives_other_bits(trial: Trial) -> Finding | None:
    """The seed reaches initialisation, shuffling and augmentation."""
    experiment = prepare(trial.config.model_copy(update={"seed": trial.config.seed + 1}))
    other = Witness(experiment, rounds=1, costs=trial.witness.federation.costs)
    if not differing(trial.visits[0].upload, other.visits[0].upload, trial.visits[0].upload):
        return Finding("another seed, another result", "the same bits", "round 0, client 0")
    return None


def _step_of_training(trial: Trial) -> tuple[LocalTask, LocalStep]:
    """A step of the last stage whose weights are away from the received ones."""
    config, plan = trial.config, trial.experiment.plans[-1]
    model = build_model(config, plan.depth)
    terms: tuple[Term, ...] = (trial.strategy, *trial.experiment.mechanisms)
    task = know_messages(untrained_task(config, model, plan.trained_groups, terms), config)
    received = {key: value.clone() for key, value in model.online_state().items()}
    task.received = Received(received | _messages(task), task.images.device)
    shape = (4, *config.encoder.image_shape)
    images = torch.linspace(-1, 1, prod(shape)).reshape(shape)
    views = (images, -images)
    task.batch_gradient = partial(gradient_on, build_fabric(config.precision, images.device), task, lambda: views)
    stage = len(trial.experiment.plans)
    draw = blank(task, config.encoder.image_shape)
    first = VisitHooks(task, stage, False, {}, draw=draw)
    first.begin()
    first.end()
    VisitHooks(task, stage, True, first.kept, draw=draw).begin()
    with torch.no_grad():
        for number, parameter in enumerate(task.trained.values(), start=1):
            parameter.add_(0.01 * number)
    return task, LocalStep(model.training_step(views), views, task.trained, task.received, task.teachers)


def _messages(task: LocalTask) -> StateDict:
    """What the client may have been sent beside the model."""
    return {
        key: torch.linspace(-1, 1, value.numel(), dtype=value.dtype).reshape(value.shape)
        if value.is_floating_point()
        else torch.arange(2, 2 + value.numel()).reshape(value.shape)  # where they number clients: others
        for key, value in zeros(travelling(task.message_specs, "download")).items()
    }


def _term(task: LocalTask, source: Term, step: LocalStep) -> Tensor | None:
    return source.local_loss(replace(step, provided=task.provided.get(type(source).__name__, {})))


def added_loss_changes_no_weight(trial: Trial) -> Finding | None:
    """A term is computed from the weights, trained and received, and leaves both alone."""
    task, step = _step_of_training(trial)
    for source in task.terms:
        before = [
            {key: value.detach().clone() for key, value in state.items()}
            for state in (step.trained, step.received)
        ]
        _term(task, source, step)
        for kept, state in zip(before, (step.trained, step.received), strict=True):
            wrong = differing(kept, dict(state), kept)
            if wrong:
                place = f"{type(source).__name__}.local_loss"
                return Finding("weights that only the optimizer changes", f"changed: {short(wrong)}", place)
    return None


def added_loss_has_a_gradient(trial: Trial) -> Finding | None:
    """A term of the strategy's own, away from the received weights, pulls on the trained parameters alone."""
    task, step = _step_of_training(trial)
    for source in task.terms:
        term = _term(task, source, step)
        finding = None if term is None else _gradient_finding(term, list(task.trained.values()), source)
        if finding:
            return finding
    return None


def _gradient_finding(term: Tensor, trained: list[Tensor], source: object) -> Finding | None:
    expected, place = "a term with a gradient on the trained parameters", f"{type(source).__name__}.local_loss"
    if not term.requires_grad:
        return Finding(expected, "the term is detached", place)
    gradients = torch.autograd.grad(term, trained, allow_unused=True, retain_graph=True)
    if not any(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients):
        return Finding(expected, "its gradient is zero", place)
    return None


CHECKS: dict[str, Check] = {
    "plan is coherent": plan_is_coherent,
    "client trains what is planned": client_trains_what_is_planned,
    "upload is what was trained": upload_is_what_was_trained,
    "clients start from payloads alone": clients_start_from_payloads_alone,
    "heads are synchronised": heads_are_synchronised,
    "bytes are counted": bytes_are_counted,
    "aggregation weights sum to one": aggregation_weights_sum_to_one,
    "aggregation survives few clients": aggregation_survives_few_clients,
    "aggregation ignores the order": aggregation_ignores_the_order,
    "server takes the aggregate": server_takes_the_aggregate,
    "growing keeps earlier blocks": growing_keeps_earlier_blocks,
    "same seed gives same bits": same_seed_gives_same_bits,
    "another seed gives other bits": another_seed_gives_other_bits,
    "added loss changes no weight": added_loss_changes_no_weight,
    "added loss has a gradient": added_loss_has_a_gradient,
}
