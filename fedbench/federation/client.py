"""A client's visit in a round: decode what was sent, train, encode what was trained.

One working model per worker serves all its clients in turn. What a client trains from is what was decoded from
bytes: groups that the client holds already came to this worker in an earlier payload, in the same version.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

from torch import Tensor

from fedbench.config.schema import Config
from fedbench.data import Views
from fedbench.data.pool import Pool
from fedbench.encoders.tensor_groups import StateDict, by_group, select
from fedbench.federation.client_states import ClientStates
from fedbench.federation.diagnostics import effective_rank
from fedbench.federation.observer import Observer
from fedbench.federation.payload import decode, encode, received_bytes
from fedbench.federation.plan import StagePlan
from fedbench.federation.protocol import Visit
from fedbench.ssl import SSLMethod
from fedbench.training import cuda_memory
from fedbench.training.cuda_memory import CudaMemory
from fedbench.training.local import LocalTask, Received, Term, build_fabric, fit
from fedbench.training.visit import KeptBefore, VisitHooks, specs_of


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
    ) -> None:
        self.config = config
        self.observer = observer
        self.terms = terms
        self.views = views
        self.images = images
        self.states = states
        self.fabric = build_fabric(config.precision, images.device)
        self.task: LocalTask | None = None
        self._received: dict[str, tuple[int, StateDict]] = {}  # group -> version and CPU values, as last decoded
        self._payload: bytes | None = None  # the latest
        self._received_bytes = 0  # of it
        self._loaded: dict[str, int] = {}  # group -> version of its values in the working model

    def start_stage(self, model: SSLMethod, plan: StagePlan) -> None:
        """A new working model. Its initial values count for nothing: groups come from payloads only."""
        self._loaded = {}
        model.to(self.images.device)
        optimizer = self.config.optimizer
        self.task = LocalTask(model, plan.trained_groups, self.terms, optimizer, self.views, self.images)
        self.task.to(self.images.device)
        self._reference = Received(model.online_state(), self.images.device)  # until the first payload comes
        self.task.received = self._reference

    def resume(self, received: Mapping[str, tuple[int, StateDict]]) -> None:
        """Take over what earlier payloads of a run that was stopped brought here: group -> version and values."""
        self._received |= received

    def train(self, visit: Visit, indices: Tensor) -> Upload:
        """Train from what was sent, send back what was trained  ([LW] Algorithm 1, the client's part).

        `indices` (int64): of the client's images.
        """
        start = perf_counter()
        task = self._receive(visit)
        task.narrow(visit.plan.run, visit.plan.trained_groups)
        task.lr_scale = visit.lr_scale
        task.method.rebuild_target()
        self.observer.visit_started(visit, task.method)
        same_stage, kept = self.states.load(visit.client, visit.round_index, visit.stage)
        hooks = VisitHooks(task, visit.stage, same_stage, kept)
        cuda_memory.start(self.images.device)
        hooks.begin()
        epochs = self.config.federation.local_epochs
        num_steps = fit(self.fabric, task, indices, epochs, self.config, visit.round_index, visit.client)
        hooks.end()
        memory = cuda_memory.read(self.images.device)
        self.observer.visit_ended(visit, task.method)
        self.states.save(visit.client, visit.round_index, visit.stage, hooks.kept)
        loss, added = (task.losses / num_steps).tolist()
        return Upload(
            self._encode(task, visit.plan),
            len(indices),
            num_steps,
            loss,
            added,
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
        if visit.payload is not self._payload:  # clients in a row are mostly sent the very same bytes
            self._decode(visit)
        missing: StateDict = {}
        received: StateDict = {}
        for group, needed in visit.versions.items():
            version, values = self._received[group]
            assert version == needed, f"{group}: version {needed} is needed, {version} came as payload"
            if self._loaded.get(group) != version:
                missing |= values
                self._loaded[group] = version
            received |= values
        self.task.method.load_online(missing)
        self.task.received = self._reference = self._reference.renewed(received)
        return self.task

    def _decode(self, visit: Visit) -> None:
        payload = decode(visit.payload)
        self._payload, self._received_bytes = visit.payload, received_bytes(visit.payload, payload)
        self._received |= {group: (visit.versions[group], part) for group, part in by_group(payload).items()}

    def _encode(self, task: LocalTask, plan: StagePlan) -> bytes:
        for group in plan.trained_groups:
            self._loaded.pop(group, None)  # overwritten by training
        return encode(select(task.method.online_state(), plan.uploaded_groups))
