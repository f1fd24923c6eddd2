"""A client's visit around its local steps: what a plugin does before and behind them, and what a client keeps.

Shapes and names of what is kept decide what a visit costs, its values do not: hooks are traced with fake tensors,
so they must not branch on values (`torch.where` does what an `if` would).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import NamedTuple

import torch
from torch import Tensor

from fedbench.encoders.tensor_groups import StateDict, in_other_block, message_key, messages_of, select, travelling
from fedbench.errors import UserError
from fedbench.random import generator
from fedbench.ssl import SSLMethod
from fedbench.training.local import LocalTask, Term, device_of

Kept = dict[str, dict[str, StateDict]]  # plugin -> part -> tensors by key


class KeptSpec(NamedTuple):
    """A tensor that a client keeps, without its values."""

    plugin: str
    part: str
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class KeptBefore(NamedTuple):
    """What a client had kept when its visit began: with the visit's plan it decides what the visit costs.

    Attributes:
        same_stage: whether it was kept in a visit of the same stage; False where nothing was.
        specs: of all that was kept.
    """

    same_stage: bool = False
    specs: tuple[KeptSpec, ...] = ()


NOTHING_KEPT = KeptBefore()


DrawViews = Callable[[str, int], Tensor]  # (plugin, how many) -> a view (B, C, H, W) of own images


class LocalVisit:
    """What `begin_visit` and `end_visit` are handed.

    Attributes:
        stage: 1-based.
        same_stage: whether what was kept comes from a visit of this stage; False where nothing was.
        client: its number; 0 where a visit is traced.
    """

    def __init__(
        self,
        task: LocalTask,
        name: str,
        stage: int,
        same_stage: bool,
        kept: dict[str, StateDict],
        client: int = 0,
        draw: DrawViews | None = None,
    ) -> None:
        """`name`: of the plugin."""
        self.stage, self.same_stage, self.client, self._name = stage, same_stage, client, name
        self._task, self._kept, self._draw = task, kept, draw
        self.replaced: set[str] = set()  # parts that were kept anew

    @property
    def trained(self) -> StateDict:
        """The online branch's tensors of the groups under training, by key; not to be changed.

        In `begin_visit` they hold what was received, in `end_visit` what came of it.
        """
        return select(self._task.method.online_state(), self._task.trained_groups)

    @property
    def target(self) -> StateDict:
        """The target branch's tensors of these groups, by the online branch's key; empty if there is no target."""
        return select(self._task.method.target_state(), self._task.trained_groups)

    @property
    def received(self) -> StateDict:
        """What the client received of the tensors under training, by key, on its device."""
        return {key: self._task.received[key] for key in self.trained}

    @property
    def lr(self) -> float:
        """Learning rate of this visit's steps."""
        return self._task.optimizer_config.lr * self._task.lr_scale

    @property
    def progress(self) -> float:
        """Share of the run's rounds that are over when this one begins; 0 in a trace."""
        return self._task.progress

    @property
    def num_steps(self) -> int:
        """Steps that were taken, in `end_visit`."""
        return self._task.num_steps

    @property
    def messages(self) -> StateDict:
        """What the client received beside the model, by name, on its device (`Mechanism.messages`)."""
        keys = messages_of(self._name, {key: key for key in self._task.received.stored})
        return {name: self._task.received[key] for name, key in keys.items()}

    @property
    def codec_state(self) -> StateDict:
        """Of what both ends of the wire remember of this client (`PersonalCodec`), that of the tensors under
        training, by their keys, on the model's device."""
        trained, device = self.trained, device_of(self._task.method)
        return {key: value.to(device) for key, value in self._task.codec_state.items() if key in trained}

    def change_codec_state(self, values: Mapping[str, Tensor]) -> None:
        """Have that become `values`, as soon as the server takes this visit's upload.

        Raises:
            UserError: one is not of `visit.codec_state`, or not in its shape and type.
        """
        own = self.codec_state
        for key, value in values.items():
            if key not in own or own[key].shape != value.shape or own[key].dtype != value.dtype:
                has = f"{tuple(own[key].shape)}, {own[key].dtype}" if key in own else "no such state"
                raise UserError(f"change_codec_state({key!r}) to {tuple(value.shape)}, {value.dtype}; it is {has}")
        new = {key: value.detach().to("cpu", copy=True) for key, value in values.items()}
        self._task.new_codec_state |= new

    def train_within(self, masks: Mapping[str, Tensor]) -> None:
        """Train only the entries where `masks`, bool by key, are true: elsewhere gradients are zero in each step.

        Raises:
            UserError: a key is not that of a parameter under training, or a mask does not have its shape.
        """
        for key, mask in masks.items():
            weight = self._task.trained.get(key)
            if weight is None or weight.shape != mask.shape or mask.dtype != torch.bool:
                raise UserError(
                    f"train_within: {key!r} of {tuple(mask.shape)}, {mask.dtype}; allowed: bool in the shape of a "
                    "parameter under training"
                )
        self._task.masks |= masks

    def gradient(self) -> StateDict:
        """By key, the gradient of what a step minimises, masked or not, on one batch of the client's images.

        It costs a forward and a backward pass, which are counted, and changes nothing of the model.
        """
        return self._task.batch_gradient()

    @property
    def method(self) -> SSLMethod:
        """The SSL method that is trained, to read from."""
        return self._task.method

    def draw(self, count: int) -> Tensor:
        """A view (`count`, C, H, W) of the client's own images, each as often as any other or once more.

        Drawn from a stream of this visit and plugin alone: at every call the same.
        """
        assert self._draw is not None, "no images here"
        return self._draw(self._name, count)

    def project(self, view: Tensor) -> Tensor:
        """z = H(F(x)) of the online branch as it is now, in eval mode, (B, C, H, W) -> (B, D)."""
        method = self._task.method
        modes = {module: module.training for module in method.modules()}
        method.eval()
        z_BD = method.project(view)
        for module, mode in modes.items():
            module.training = mode
        if self._task.prefix is not None:
            self._task.prefix.forget()  # of a view that no step has
        return z_BD

    def send(self, values: Mapping[str, Tensor]) -> None:
        """Send messages to the server, with the upload; zeros travel where nothing is sent.

        Raises:
            UserError: one is not declared by `messages`, or not in that shape and type, or goes down alone.
        """
        declared = messages_of(self._name, travelling(self._task.message_specs, "upload"))
        for name, value in values.items():
            spec = declared.get(name)
            if spec is None or tuple(value.shape) != tuple(spec.shape) or value.dtype != spec.dtype:
                has = "nothing of that name" if spec is None else f"{tuple(spec.shape)}, {spec.dtype}"
                raise UserError(f"send({name!r}) of {tuple(value.shape)}, {value.dtype}; declared: {has}")
        self._task.said |= {message_key(self._name, name): value.detach() for name, value in values.items()}

    def provide(self, values: Mapping[str, Tensor]) -> None:
        """Have `step.provided` in this visit's steps: tensors on the model's device, by name, without gradient."""
        self._task.provided[self._name] = dict(values)

    def kept(self, part: str) -> StateDict:
        """What was kept as `part` and can be used now: entries of the groups under training whose shape is the
        model's, and those under names of the plugin's own. On the model's device; empty if there is nothing."""
        values, trained = self._kept.get(part, {}), self.trained
        device = device_of(self._task.method)
        return {key: value.to(device) for key, value in values.items() if is_usable(key, value.shape, trained)}

    def keep(self, part: str, values: Mapping[str, Tensor]) -> None:
        """Keep `values` as `part` until the client's next visit, instead of what it was.

        Raises:
            UserError: a key is neither that of a tensor under training nor a name without a dot.
        """
        trained = self.trained
        for key in values:
            if "." in key and key not in trained:
                raise UserError(
                    f"keep({part!r}) holds {key!r}; allowed: keys of tensors under training, names without a dot"
                )
        self.replaced.add(part)
        self._kept[part] = {key: value.detach().to("cpu", copy=True) for key, value in values.items()}

    def start_from(self, values: Mapping[str, Tensor]) -> None:
        """Train from `values` instead of what was received; the target branch is rebuilt from them.

        Raises:
            UserError: a key is not that of a tensor under training.
        """
        self._check("start_from", values)
        self._task.method.load_online(values)
        self._task.method.rebuild_target()

    def load_target(self, values: Mapping[str, Tensor]) -> None:
        """Give the target branch `values`, by the online branch's key. What is frozen follows the online branch.

        Raises:
            UserError: a key is not that of a tensor under training.
        """
        self._check("load_target", values)
        self._task.method.load_target(values)

    def freeze(self, name: str, values: Mapping[str, Tensor] | None = None) -> None:
        """Have `step.teachers[name]`: a frozen copy of the received model, with `values` for trained tensors.

        Raises:
            UserError: a key is not that of a tensor under training.
        """
        self._check("freeze", values or {})
        self._task.have_teacher(name, values or {})

    def _check(self, what: str, values: Mapping[str, Tensor]) -> None:
        odd = values.keys() - self.trained.keys()
        if odd:
            raise UserError(f"{what}: {min(odd)!r} is not under training; allowed: keys of `visit.trained`")


class VisitHooks:
    """All plugins' hooks around one visit, and what the client keeps of it."""

    def __init__(
        self,
        task: LocalTask,
        stage: int,
        same_stage: bool,
        kept: Kept,
        client: int = 0,
        draw: DrawViews | None = None,
    ) -> None:
        """`kept`: of the client's visit before, which was in the `same_stage` or an earlier one."""
        self.task, self.stored = task, kept
        self.plugins: tuple[Term | SSLMethod, ...] = (*task.terms, task.method)
        self.visits = {
            name: LocalVisit(task, name, stage, same_stage, dict(kept.get(name, {})), client, draw)
            for name in (type(plugin).__name__ for plugin in self.plugins)
        }

    @torch.no_grad()
    def begin(self) -> None:
        """Behind the download, before the first step."""
        self.task.teachers, self.task.provided, self.task.said = {}, {}, {}
        self.task.masks, self.task.new_codec_state = {}, {}
        for plugin, visit in zip(self.plugins, self.visits.values(), strict=True):
            plugin.begin_visit(visit)
        self.task.put_away_teachers()

    @torch.no_grad()
    def end(self) -> None:
        """Behind the last step, before the upload."""
        for plugin, visit in zip(self.plugins, self.visits.values(), strict=True):
            plugin.end_visit(visit)

    @property
    def kept(self) -> Kept:
        """What the client keeps now; parts that nobody replaced stay."""
        return self.stored | {name: visit._kept for name, visit in self.visits.items() if visit._kept}

    @property
    def replaced(self) -> dict[tuple[str, str], tuple[KeptSpec, ...]]:
        """What was kept in this visit, by plugin and part."""
        return {
            (name, part): tuple(specs_of({name: {part: visit._kept[part]}}))
            for name, visit in self.visits.items()
            for part in sorted(visit.replaced)
        }


def blank(task: LocalTask, image_shape: tuple[int, int, int]) -> DrawViews:
    """Views of nothing, where a visit has no client's images: images are (C, H, W)."""
    return lambda _, count: torch.zeros(task.views.shapes(count, image_shape)[0])


def own_images(task: LocalTask, indices: Tensor, seed: int, *key: str | int) -> DrawViews:
    """Views of the images `indices` (N,), where `key` names the visit."""

    def draw(plugin: str, count: int) -> Tensor:
        order = torch.randperm(len(indices), generator=generator(seed, "draw", plugin, *key))
        chosen = indices[order[torch.arange(count) % len(indices)].to(indices.device)]
        device = task.images.device
        return task.views(task.images[chosen], generator(seed, "augment", plugin, *key, device=device))[0]

    return draw


def specs_of(kept: Kept) -> list[KeptSpec]:
    """What is kept, without values."""
    return [
        KeptSpec(plugin, part, key, tuple(value.shape), value.dtype)
        for plugin, parts in kept.items()
        for part, values in parts.items()
        for key, value in values.items()
    ]


def empty_tensors(specs: Iterable[KeptSpec]) -> Kept:
    """Tensors like those of `specs`; made inside a FakeTensorMode they have no values."""
    kept: Kept = {}
    for plugin, part, key, shape, dtype in specs:
        kept.setdefault(plugin, {}).setdefault(part, {})[key] = torch.empty(shape, dtype=dtype)
    return kept


def is_usable(key: str, shape: Iterable[int], trained: Mapping[str, Tensor]) -> bool:
    """Whether a visit that trains `trained` is handed a kept tensor."""
    return "." not in key or (key in trained and tuple(trained[key].shape) == tuple(shape))


def handed(before: KeptBefore, model: SSLMethod, trained_groups: Set[str], run: Sequence[int]) -> KeptBefore:
    """Of what was kept, what a visit's plugins are handed, with blocks by their position: equal where costs are.

    `run`: blocks that the visit runs.
    """
    if not before.specs:
        return before
    trained = select(model.online_state(), trained_groups)
    specs = [spec for spec in before.specs if is_usable(spec.key, spec.shape, trained)]
    return KeptBefore(before.same_stage, tuple(sorted(by_position(specs, run), key=str)))


def by_position(specs: Iterable[KeptSpec], run: Sequence[int]) -> tuple[KeptSpec, ...]:
    """The same with every block named by its position among those that are `run`: blocks are alike."""
    numbers = {block: position for position, block in enumerate(run)}
    return tuple(spec._replace(key=in_other_block(spec.key, numbers)) for spec in specs)


def by_block(specs: Iterable[KeptSpec], run: Sequence[int]) -> tuple[KeptSpec, ...]:
    """Blocks by their own numbers again."""
    return tuple(spec._replace(key=in_other_block(spec.key, dict(enumerate(run)))) for spec in specs)
