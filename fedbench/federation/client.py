"""A client's visit in a round: decode what was sent, train, encode what was trained.

One working model per worker serves all its clients in turn. What a client trains from is what was decoded from
bytes: groups that the client holds already came to this worker in an earlier payload, in the same version.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from fedbench.config.schema import Config
from fedbench.data import Views
from fedbench.data.pool import Pool
from fedbench.encoders.tensor_groups import (
    ALL,
    StateDict,
    beside,
    by_group,
    group_of,
    on_wire,
    select,
    travelling,
    variant,
)
from fedbench.errors import UserError
from fedbench.federation.client_states import ClientStates
from fedbench.federation.codec import Way
from fedbench.federation.diagnostics import effective_rank
from fedbench.federation.dispatch import specs_by_group
from fedbench.federation.messages import know_messages, zeros
from fedbench.federation.observer import Observer
from fedbench.federation.payload import decode, encode, received_bytes
from fedbench.federation.plan import StagePlan
from fedbench.federation.protocol import Visit
from fedbench.federation.shipment import describe
from fedbench.federation.versions import NOTHING
from fedbench.federation.wire import Wire, added, is_packed, subtracted
from fedbench.ssl import SSLMethod
from fedbench.training import cuda_memory
from fedbench.training.cuda_memory import CudaMemory
from fedbench.training.local import (
    LocalTask,
    Received,
    Term,
    build_fabric,
    fit,
    gradient_on,
    no_gradient,
    views_of_one_batch,
)
from fedbench.training.visit import Kept, KeptBefore, VisitHooks, own_images, specs_of

WIRE = "wire"  # under which a client keeps what codecs need, beside what plugins keep:
LOST = "lost"  # by payloads before
BEFORE, AFTER, VISIT = "before", "after", "visit"  # a codec's state around the latest visit, and when that was


@dataclass(frozen=True)
class Upload:
    """What a client sends back after local training, and what is known of the training.

    Attributes:
        data: safetensors bytes of the uploaded groups.
        num_samples: |D^n|.
        num_steps: local steps taken.
        loss: mean over the local steps of the SSL loss; `added_loss`: of the added terms.
        effective_rank: of the last step's projections.
        memory: of this training, on a GPU; None on a CPU.
        pool_bytes: of the images of all clients, which lie in that memory and which no client has.
        received_bytes: of the download, as its decoder counted them.
        kept: what the client had kept from earlier visits, without values.
        seconds: that the visit took.
        deaths: of worker processes over this visit, before the one that trained it.
    """

    data: bytes
    num_samples: int
    num_steps: int
    loss: float
    added_loss: float
    effective_rank: float
    memory: CudaMemory | None
    pool_bytes: int
    received_bytes: int
    kept: KeptBefore
    seconds: float
    deaths: int = 0


class Worker:
    """Trains one client after the other on one working model."""

    def __init__(
        self,
        config: Config,
        terms: Sequence[Term],
        views: Views,
        images: Pool,
        states: ClientStates,
        observer: Observer,
        wire: Wire,
    ) -> None:
        self.config = config
        self.observer = observer
        self.terms = terms
        self.views = views
        self.images = images
        self.states = states
        self.wire = self._wire_of_all = wire
        self.fabric = build_fabric(config.precision, images.device)
        self.task: LocalTask | None = None
        self._received: dict[str, tuple[int, StateDict]] = {}  # by variant: version, and values as last decoded
        self._payload: bytes | None = None  # the latest
        self._received_bytes = 0  # of it
        self._loaded: dict[str, tuple[str, int]] = {}  # group -> variant and version in the working model

    def start_stage(self, model: SSLMethod, plan: StagePlan) -> None:
        """A new working model. Its initial values count for nothing: groups come from payloads only."""
        self._loaded = {}
        self._wire_of_all.start_stage(plan.finished)
        model.to(self.images.device)
        optimizer = self.config.optimizer
        self.task = LocalTask(model, plan.trained_groups, self.terms, optimizer, self.views, self.images)
        self.task.to(self.images.device)
        know_messages(self.task, self.config)
        self._specs = specs_by_group({**describe(model), **self.task.message_specs})
        self._reference = Received(model.online_state(), self.images.device)  # until the first payload comes
        self.task.received = self._reference

    def resume(self, received: Mapping[str, tuple[int, StateDict]]) -> None:
        """Take over what earlier payloads of a run that was stopped brought here, by variant of a group."""
        self._received |= received

    def train(self, visit: Visit, indices: Tensor) -> Upload:
        """Train from what was sent, send back what was trained  ([LW] Algorithm 1, the client's part).

        `indices` (int64): of the client's images.
        """
        start = perf_counter()
        same_stage, kept = self.states.load(visit.client, visit.round_index, visit.stage)
        own = kept.pop(WIRE, {})
        lost = own.get(LOST, {}) if same_stage else {}
        same_stage &= bool(kept)
        state = agreed_state(visit, own)
        self.wire = self._wire_of_all.of_client(visit.client, state)
        task = self._receive(visit)
        task.narrow(visit.plan.run, visit.plan.trained_groups, visit.plan.way)
        task.lr_scale, task.progress = visit.lr_scale, visit.round_index / self.config.federation.rounds
        task.codec_state = self._codec_state(visit.client)
        key = (visit.round_index, visit.client)
        views = partial(views_of_one_batch, task, indices, self.config, *key, "gradient")
        task.batch_gradient = partial(gradient_on, self.fabric, task, views)
        task.method.rebuild_target()
        self.observer.visit_started(visit, task.method)
        draw = own_images(task, indices, self.config.seed, *key)
        hooks = VisitHooks(task, visit.stage, same_stage, kept, visit.client, draw)
        cuda_memory.start(self.images.device)
        hooks.begin()
        epochs = self.config.federation.local_epochs
        num_steps = fit(self.fabric, task, indices, epochs, self.config, *key)
        task.num_steps = num_steps
        hooks.end()
        task.batch_gradient = no_gradient  # else the task would hold itself, and its memory beyond its stage
        memory = cuda_memory.read(self.images.device)
        self.observer.visit_ended(visit, task.method)
        becomes = self._new_codec_state(task, visit.plan)
        data, lost = self._encode(task, visit, lost, becomes)
        kept_now = {LOST: lost} | state_to_keep(visit, state, becomes)
        wires: Kept = {WIRE: kept_now} if any(kept_now.values()) or own else {}
        self.states.save(visit.client, visit.round_index, visit.stage, hooks.kept | wires)
        loss, added_loss = (task.losses / num_steps).tolist()
        return Upload(
            data,
            len(indices),
            num_steps,
            loss,
            added_loss,
            effective_rank(task.projections),
            memory,
            self.images.nbytes,
            self._received_bytes,
            KeptBefore(same_stage, tuple(specs_of(kept))),
            perf_counter() - start,
        )

    def _receive(self, visit: Visit) -> LocalTask:
        """Decode the payload; load every needed group that the working model has not in the needed version."""
        assert self.task is not None, "start_stage comes first"
        if self.wire.personal is not None:  # of what came to another client nothing is here
            self._received, self._loaded, self._payload = {}, {}, None
        if visit.payload is not self._payload:  # clients in a row are mostly sent the very same bytes
            self._decode(visit)
        missing: StateDict = {}
        received: StateDict = {}
        for group, needed in visit.versions.items():
            name = variant(group, visit.tier)
            version, values = self._received[name]
            assert version == needed, f"{name}: version {needed} is needed, {version} came as payload"
            if self._loaded.get(group) != (name, version):
                missing |= values
                self._loaded[group] = (name, version)
            received |= values
        self.task.method.load_online({key: value for key, value in missing.items() if not on_wire(key)})
        self.task.received = self._reference = self._reference.renewed(received)
        return self.task

    def _codec_state(self, client: int) -> StateDict:
        """What both ends remember of the client, by key."""
        states = (self.wire.state(group, specs, client) for group, specs in self._specs.items())
        return {key: value for state in states for key, value in state.items()}

    def _new_codec_state(self, task: LocalTask, plan: StagePlan) -> StateDict:
        """What it tells of that in its upload, for the groups that it sends."""
        changes = self.wire.personal is not None and self.wire.personal.changes_state
        return select(task.codec_state | task.new_codec_state, plan.uploaded_groups) if changes else {}

    def _decode(self, visit: Visit) -> None:
        payload = decode(visit.payload)
        self._payload, self._received_bytes = visit.payload, received_bytes(visit.payload, payload)
        for group, part in by_group(payload).items():
            values = self._unpacked(group, part, visit) if is_packed(part) else part
            self._received[variant(group, visit.tier)] = (visit.versions[group], values)

    def _unpacked(self, group: str, part: StateDict, visit: Visit) -> StateDict:
        """The values of a group that came packed: as a change of what the client holds, or all of it."""
        version, values = self._received.get(variant(group, visit.tier), (NOTHING, {}))
        if version == visit.versions[group]:  # another client of this worker was sent them
            return values
        base = visit.bases[group]
        assert base in (NOTHING, version), f"{group}: a change of version {base}, but {version} came as payload"
        change = self.wire.unpack(group, part, self._specs[group], Way("download", visit.tier))
        rest = {key: value for key, value in part.items() if not on_wire(key)}
        return dict(sorted((added(values if base != NOTHING else {}, change) | rest).items()))

    def _encode(
        self, task: LocalTask, visit: Visit, lost: StateDict, becomes: StateDict
    ) -> tuple[bytes, StateDict]:
        """The payload up, and what it loses where the client is to add that to the next one.

        `lost`: by those before it in this stage. `becomes`: what is told of the codec's state.
        """
        for group in visit.plan.trained_groups:
            self._loaded.pop(group, None)  # overwritten by training
        state = select(task.method.online_state(), visit.plan.uploaded_groups)
        state |= self._messages(task, visit.plan)
        sent: StateDict = {}
        losing = dict(lost)  # a group that is not sent now has its loss until it is
        for group, part in by_group(state).items():
            packed, rest = self._packed(group, part, visit, lost, becomes)
            sent |= packed
            losing = {key: value for key, value in losing.items() if key not in part} | rest
        if self.wire.codecs or task.message_specs:  # they are on the CPU, and a payload is made in one place
            sent = {key: value.detach().cpu() for key, value in sent.items()}
        return encode(sent), losing

    @staticmethod
    def _messages(task: LocalTask, plan: StagePlan) -> StateDict:
        """What the client sends beside the model: zeros where a mechanism sends nothing."""
        groups = {*plan.uploaded_groups, ALL}
        said = zeros(travelling(task.message_specs, "upload")) | task.said
        return {key: value for key, value in said.items() if beside(group_of(key)) in groups}

    def _packed(
        self, group: str, ended: StateDict, visit: Visit, lost: StateDict, becomes: StateDict
    ) -> tuple[StateDict, StateDict]:
        """A group as it travels up, as a change of what was received, and what of that is lost.

        `becomes`: what is told of the codec's state.
        """
        specs, way = self._specs[group], Way("upload", visit.tier)
        coded = self.wire.coded(group, specs, way)
        if not coded:
            return ended, {}
        _, received = self._received[variant(group, visit.tier)]
        ended = {key: value.detach().cpu() for key, value in ended.items()}
        change = subtracted({key: ended[key] for key in coded}, received)
        has_feedback = self.wire.has_feedback(group, way)
        if has_feedback:
            change = {key: _topped_up(value, lost.get(key)) for key, value in change.items()}
        own = {key: value for key, value in becomes.items() if group_of(key) == group}
        packed = self.wire.pack(group, change, specs, way, visit.round_index, visit.client, becomes=own)
        rest = {key: value for key, value in ended.items() if key not in change}
        if not has_feedback:
            return packed | rest, {}
        losing = subtracted(change, self.wire.unpack(group, packed, specs, way))
        return packed | rest, {key: value for key, value in losing.items() if value.isfinite().all()}


def agreed_state(visit: Visit, kept: Mapping[str, StateDict]) -> StateDict:
    """Of the codec's state that a client kept, what the server remembers, too, by key.

    What it became in the client's latest visit, if the server took the upload of that; else what it was before.

    UserError: the client did not keep what the server remembers.
    """
    latest = int(kept[VISIT]["round"]) if VISIT in kept else None
    state: StateDict = {}
    for group, round_index in visit.agreed.items():
        part = select(kept.get(AFTER if round_index == latest else BEFORE, {}), {group})
        if not part:
            raise UserError(
                f"client {visit.client} has not kept what it told the server of {group} in round {round_index}; "
                "allowed: with all that clients kept, or the run begun anew"
            )
        state |= part
    return state


def state_to_keep(visit: Visit, state: StateDict, changed: StateDict) -> dict[str, StateDict]:
    """A codec's state before and after a visit: whether the server takes the upload shows in the next one."""
    if not state and not changed:
        return {}
    after = {key: value.clone() for key, value in changed.items()}  # a file has no tensor twice
    return {BEFORE: state, AFTER: after, VISIT: {"round": torch.tensor(visit.round_index)}}


def _topped_up(change: Tensor, lost: Tensor | None) -> Tensor:
    """A change, and what the payload before lost of the same tensor."""
    return change if lost is None or lost.shape != change.shape else change + lost
