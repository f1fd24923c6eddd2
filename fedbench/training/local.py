"""Local training: what a client, and a calibrating server, does with a model and some samples."""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Protocol

import torch
from lightning import Fabric, LightningModule
from lightning.fabric.plugins import MixedPrecision, Precision
from torch import Tensor, nn

from fedbench.config.schema import Config, OptimizerConfig
from fedbench.data import Views, build_views
from fedbench.data.pool import Pool
from fedbench.encoders.encoder import Encoder, SharedPrefix
from fedbench.encoders.tensor_groups import Specs, StateDict, select
from fedbench.random import generator, stream
from fedbench.ssl import SSLMethod, StepOutput
from fedbench.training.model import freeze_all_but
from fedbench.training.optimizer import build_optimizer

if TYPE_CHECKING:
    from fedbench.training.visit import LocalVisit

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # Fabric announces its precision there


class Teacher(nn.Module):
    """A frozen copy of encoder and projection head: views (B, C, H, W) -> projections (B, D), no gradient."""

    def __init__(self, method: SSLMethod) -> None:
        super().__init__()
        # tensors by hand: where the model is a fake one, deepcopy would give each a FakeTensorMode of its own
        copies: dict[int, object] = {id(buffer): buffer.clone() for buffer in method.buffers()}
        copies |= {id(weight): nn.Parameter(weight.detach().clone()) for weight in method.parameters()}
        self.encoder = copy.deepcopy(method.encoder, copies)
        self.projection_head = copy.deepcopy(method.projection_head, copies)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, view: Tensor) -> Tensor:
        """z = H(F(x)) with BatchNorm in eval mode."""
        return self.projection_head(self.encoder(view))

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over values from an online state; what is neither encoder nor projection head is left out."""
        self.load_state_dict({key: state[key] for key in self.state_dict()})


@dataclass(frozen=True)
class LocalStep:
    """One local training step as an added loss term sees it.

    Attributes:
        output: the SSL method's loss and projections (z1, z2).
        views: the views (B, C, H, W), without small crops.
        trained: the parameters under training, by key.
        received: the global model's tensors as this client received them, by key of the online state; detached,
            on the model's device.
        teachers: the frozen models of this visit, by name (`LocalVisit.freeze`).
        provided: what the term's own `begin_visit` made for it, by name (`LocalVisit.provide`).
    """

    output: StepOutput
    views: Sequence[Tensor]
    trained: Mapping[str, Tensor]
    received: Mapping[str, Tensor]
    teachers: Mapping[str, Teacher]
    provided: Mapping[str, Tensor] = field(default_factory=dict)


class Received(Mapping[str, Tensor]):
    """The values that a client received, by key: kept on the CPU, those that a loss term reads on the device too.

    A term of this stage that has read a value will read it in later visits as well: there it is on the device from
    the beginning, like all that a client needs for a step.
    """

    def __init__(self, stored: Mapping[str, Tensor], device: torch.device, read: Iterable[str] = ()) -> None:
        self.stored, self._device = stored, device
        self._read = {key: stored[key].to(device) for key in read if key in stored}

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._read:
            self._read[key] = self.stored[key].to(self._device)
        return self._read[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def renewed(self, values: Mapping[str, Tensor]) -> "Received":
        """The same for another visit."""
        return Received(values, self._device, self._read)


class Term(Protocol):
    """What has a say in local training: the strategy, and each of its mechanisms."""

    def begin_visit(self, visit: "LocalVisit") -> None:
        """Before the first step."""
        ...

    def end_visit(self, visit: "LocalVisit") -> None:
        """Behind the last step."""
        ...

    def local_loss(self, step: LocalStep) -> Tensor | None:
        """The term, or None."""
        ...


def device_of(module: nn.Module) -> torch.device:
    """Where the parameters of a module are."""
    return next(module.parameters()).device


def move(module: nn.Module, device: torch.device) -> None:
    """Move a module if it is not there: `Module.to` refuses fake tensors even where it has nothing to do."""
    if device_of(module) != device:
        module.to(device)


class LocalTask(LightningModule):
    """Views of a batch, the SSL method's loss plus the added terms, optimizer, target's momentum."""

    def __init__(
        self,
        method: SSLMethod,
        trained_groups: Set[str],
        terms: Sequence[Term],
        optimizer: OptimizerConfig,
        views: Views,
        images: Pool,
    ) -> None:
        """`method` is trained in `trained_groups` and frozen in all others."""
        super().__init__()
        self.method = method
        self.terms = terms
        self.optimizer_config = optimizer
        self.lr_scale = 1.0  # of this round
        self.views = views
        self.images = images  # uint8 (N, C, H, W); a batch of them is on the device
        self.generator = torch.Generator(images.device)
        self.received = Received({}, images.device)
        self.all_teachers = nn.ModuleDict()  # that a visit ever had
        self.teachers: dict[str, Teacher] = {}  # of this visit
        self.provided: dict[str, StateDict] = {}  # by term, of this visit
        self.message_specs: Specs = {}  # what travels beside the model, by key on the wire
        self.said: StateDict = {}  # of that, what this visit sends
        self.masks: StateDict = {}  # of this visit, bool: of parameters that are trained in some entries only
        self.codec_state: StateDict = {}  # that both ends of the wire remember of this client, by key
        self.new_codec_state: StateDict = {}  # of that, what this visit changes
        self.batch_gradient: Callable[[], StateDict] = no_gradient  # on one of the client's batches
        self.progress = 0.0  # of the run, as this round begins: 0 to 1
        self.num_steps = 1  # of this visit, where it has trained
        self.prefix: SharedPrefix | None = None
        self.trained_groups: Set[str] = frozenset()
        self.trained: dict[str, nn.Parameter] = {}
        self._narrowed: tuple[object, ...] = ()
        self.narrow(range(len(method.encoder.blocks)), trained_groups)  # whatever an earlier task had
        self.losses = torch.zeros(2, device=images.device)  # sums over steps: the SSL loss, the added terms
        self.projections = torch.zeros(0)  # of the last step: z1 (B, D); (0,) where the method tells none

    @property
    def encoders(self) -> list[Encoder]:
        """Of all branches and teachers."""
        return [module for module in self.modules() if isinstance(module, Encoder)]

    def narrow(self, run: Sequence[int], trained_groups: Set[str], way: str = "") -> None:
        """Let every encoder run the blocks `run` only, and train `trained_groups` only.

        `way`: through the encoders, the only one that is taken; "": those that the SSL method chooses.
        """
        if self._narrowed == (*run, trained_groups, way):
            return
        self._narrowed = (*run, trained_groups, way)
        for encoder in self.encoders:
            encoder.active = run
            encoder.ways.keep_to(way)
        for parameter in self.trained.values():
            parameter.grad = None  # of the visit before
        self.trained_groups = trained_groups
        freeze_all_but(self.method, trained_groups)
        self.trained = {key: value for key, value in self.method.named_parameters() if value.requires_grad}
        self.prefix = self._share_prefix()

    def have_teacher(self, name: str, values: Mapping[str, Tensor]) -> None:
        """Have a teacher in this visit: the received model, with `values` for tensors under training."""
        if name not in self.all_teachers:
            self.all_teachers[name] = Teacher(self.method)
        teacher = self.all_teachers[name]
        assert isinstance(teacher, Teacher)
        move(teacher, device_of(self.method))
        teacher.encoder.active, teacher.encoder.prefix = self.method.encoder.active, self.prefix
        received = select(self.received.stored, self.trained_groups)
        teacher.load({**self.method.online_state(), **received, **values})
        self.teachers[name] = teacher

    def put_away_teachers(self) -> None:
        """Those that this visit does not have are not in the client's memory."""
        for name in self.all_teachers.keys() - self.teachers.keys():
            move(self.all_teachers[name], torch.device("cpu"))

    def _share_prefix(self) -> SharedPrefix | None:
        """Frozen blocks hold the received values in both branches and in the teachers: run them once for all."""
        for encoder in self.encoders:
            encoder.prefix = None  # of an earlier task with the same model
        num_frozen = self.method.encoder.num_frozen()
        if not num_frozen:
            return None
        prefix = SharedPrefix(num_frozen)
        self.method.encoder.prefix = prefix
        if self.method.target_encoder is not None and self.method.target_follows():
            self.method.target_encoder.prefix = prefix
        return prefix

    def step_losses(self, views: tuple[Tensor, ...]) -> tuple[StepOutput, Tensor]:
        """The SSL method's output over views (B, C, H, W), and the sum of the added terms."""
        with self.method.encoder.ways.noting() as noted:
            output = self.method.training_step(views)
        step = LocalStep(output, views[: self.method.num_views], self.trained, self.received, self.teachers)
        terms = (source.local_loss(self._own(step, source)) for source in self.terms)
        added = [term for term in terms if term is not None]
        added += self.method.encoder.ways.losses(noted)
        if self.prefix is not None:
            self.prefix.forget()
        return output, torch.stack(added).sum() if added else output["loss"].new_zeros(())

    def _own(self, step: LocalStep, source: Term) -> LocalStep:
        own = self.provided.get(type(source).__name__)
        return replace(step, provided=own) if own else step

    def mask_gradients(self) -> None:
        """Where a parameter is not trained its gradient is zero, and an entry that is zero stays so."""
        for key, mask in self.masks.items():
            gradient = self.trained[key].grad
            if gradient is not None:
                gradient.mul_(mask)

    def step_loss(self, views: tuple[Tensor, ...]) -> Tensor:
        """What a step minimises."""
        output, added = self.step_losses(views)
        return output["loss"] + added

    def training_step(self, indices: Tensor, batch_idx: int = 0) -> Tensor:
        """One local step on the samples `indices` (B,)."""
        output, added = self.step_losses(self.views(self.images[indices], self.generator))
        self.losses += torch.stack([output["loss"].detach(), added.detach()])
        self.projections = output["projections"][0].detach() if "projections" in output else torch.zeros(0)
        return output["loss"] + added

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """A fresh one over the trained parameters."""
        return build_optimizer(self.trained.values(), self.optimizer_config, self.lr_scale)


def untrained_task(
    config: Config, method: SSLMethod, trained_groups: Set[str], terms: Sequence[Term] = ()
) -> LocalTask:
    """What a client, or the server, would train, without images: to trace what it costs."""
    views = build_views(config.augmentation, config.encoder.image_size, method.num_views)
    return LocalTask(method, trained_groups, terms, config.optimizer, views, torch.empty(0))


def num_steps(num_samples: int, batch_size: int, epochs: int) -> int:
    """Local steps of a client: ceil(E n / B), where a batch holds no more than all n samples."""
    return ceil(epochs * num_samples / min(batch_size, num_samples))


def local_batches(indices: Tensor, batch_size: int, epochs: int, shuffle: torch.Generator) -> Tensor:
    """The samples of every local step, (`num_steps`, B): cut from consecutive shuffles of `indices` (N,).

    No image is left out by chance: each is seen E times, and some once more, to fill the last batch. An image that
    stands in a batch begun by one shuffle comes last in the next, because two views of it in one batch would be
    taken for each other's negatives.
    """
    count, size = len(indices), min(batch_size, len(indices))
    steps = num_steps(count, batch_size, epochs)
    order = torch.empty(0, dtype=torch.long)
    while len(order) < steps * size:
        begun = order[len(order) // size * size :]
        shuffled = torch.randperm(count, generator=shuffle)
        repeated = torch.isin(shuffled, begun)
        order = torch.cat([order, shuffled[~repeated], shuffled[repeated]])
    return indices[order[: steps * size].to(indices.device)].view(steps, size)


def build_fabric(precision: str, device: torch.device) -> Fabric:
    """Lightning's part in a local step: the precision it is computed in, and its backward pass.

    It moves nothing, so it need not know the device: tensors are there already.
    """
    plugin = Precision() if precision == "32-true" else MixedPrecision(precision, device.type)  # type: ignore[arg-type]
    return Fabric(accelerator="cpu", devices=1, plugins=plugin)


def take_step(
    fabric: Fabric,
    task: LocalTask,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[], Tensor],
    enter: Callable[[str], None] | None = None,
) -> None:
    """One local step, whether it trains or is metered. Old gradients live until the loss is known.

    `enter` is told the phases after the forward pass as they begin: `backward`, `optimizer`.
    """
    with fabric.autocast():
        loss = loss_of()
    optimizer.zero_grad()
    if enter:
        enter("backward")
    fabric.backward(loss)
    task.mask_gradients()
    if enter:
        enter("optimizer")
    optimizer.step()
    task.method.update_target()


def no_gradient() -> StateDict:
    """Stands for a gradient where there is no batch."""
    raise AssertionError("a gradient is asked for outside of a visit")


def gradient_on(fabric: Fabric, task: LocalTask, views: Callable[[], tuple[Tensor, ...]]) -> StateDict:
    """Gradient by key of what a step minimises on `views()`, of all entries, masked or not.

    A forward and a backward pass that leave the model as it is, buffers included.
    """
    before = {name: buffer.clone() for name, buffer in task.method.named_buffers()}
    with torch.enable_grad():
        with fabric.autocast():
            loss = task.step_loss(views())
        gradients = torch.autograd.grad(loss, list(task.trained.values()), allow_unused=True)
    with torch.no_grad():
        for name, buffer in task.method.named_buffers():
            buffer.copy_(before[name])
    pairs = zip(task.trained.items(), gradients, strict=True)
    return {key: torch.zeros_like(weight) if one is None else one for (key, weight), one in pairs}


def views_of_one_batch(task: LocalTask, indices: Tensor, config: Config, *key: str | int) -> tuple[Tensor, ...]:
    """Views of a batch of `indices` beside those of the steps, every draw from the streams named by `key`."""
    task.generator.manual_seed(stream(config.seed, "augment", *key))
    _seed_noise(stream(config.seed, "noise", *key), task.images.device)
    size = min(config.optimizer.batch_size, len(indices))
    drawn = torch.randperm(len(indices), generator=generator(config.seed, "shuffle", *key))[:size]
    return task.views(task.images[indices[drawn.to(indices.device)]], task.generator)


def fit(fabric: Fabric, task: LocalTask, indices: Tensor, epochs: int, config: Config, *key: str | int) -> int:
    """Train `task` on the samples `indices` for `epochs`, every draw from the streams named by `key`.

    The target branch is where the caller left it. A loop and no Trainer, because one `Trainer.fit` takes as long
    as a small client's whole training.

    Returns:
        The number of steps taken.
    """
    task.losses.zero_()
    task.projections = torch.zeros(0)  # of another client
    task.generator.manual_seed(stream(config.seed, "augment", *key))
    _seed_noise(stream(config.seed, "noise", *key), task.images.device)
    shuffle = generator(config.seed, "shuffle", *key)
    batches = local_batches(indices, config.optimizer.batch_size, epochs, shuffle)
    optimizer = task.configure_optimizers()
    for batch in batches:
        take_step(fabric, task, optimizer, partial(task.training_step, batch))
    optimizer.zero_grad()  # gradients are this client's alone
    return len(batches)


def _seed_noise(seed: int, device: torch.device) -> None:
    """Dropout, and whatever a plugin draws. Without a GPU `torch.manual_seed` writes a traceback every time."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
