"""What the server does with the model and images of its own: it trains all that exists, or edits some of it."""

from collections.abc import Iterator, Set
from contextlib import contextmanager

import torch
from torch import Tensor

from fedbench.config.schema import Config
from fedbench.data import Views
from fedbench.data.pool import Pool, beside, place
from fedbench.encoders.tensor_groups import select
from fedbench.errors import UserError
from fedbench.federation.mechanism import Mechanism
from fedbench.federation.plan import StagePlan
from fedbench.federation.server import Server
from fedbench.ssl import SSLMethod
from fedbench.training.local import LocalTask, build_fabric, fit
from fedbench.training.server_edit import Edit, apply_edit, check_edit


class ServerTraining:
    """What a mechanism's `server_step` and `end_stage` are handed: the server's model, images, ways to change it.

    Attributes:
        plan: the stage's.
        finished: blocks that this stage has trained and no later one does; all, at the end of the last.
        num_steps: taken in this round.
        edits: made in this round.
    """

    plan: StagePlan
    finished: tuple[int, ...]

    def __init__(
        self,
        config: Config,
        server: Server,
        auxiliary: Tensor,
        views: Views,
        device: torch.device,
        number: int = 0,
    ) -> None:
        """`auxiliary`: uint8 (N, C, H, W), perhaps none. `number`: of the mechanism, so that two draw unlike."""
        self.config = config
        self.server = server
        self.views = views
        self.auxiliary = auxiliary
        self.device = device
        self.fabric = build_fabric(config.precision, device)
        self._key: tuple[str | int, ...] = ("server", number) if number else ("server",)
        self.num_steps = 0
        self.edits: list[Edit] = []

    def start_stage(self, model: SSLMethod, plan: StagePlan, finished: tuple[int, ...]) -> None:
        """A new working model, of which all blocks are trained."""
        self.plan, self.finished = plan, finished
        self._trained_groups = StagePlan.end_to_end(plan.depth).trained_groups
        self.task = self._task(model, self.auxiliary)  # on the CPU: what a step costs is read off it

    def start_round(self, round_index: int, lr_scale: float) -> None:
        """Every round has its own random streams, and the schedule's learning rate."""
        self.round_index, self.lr_scale = round_index, lr_scale
        self.num_steps = 0
        self.edits = []

    def train(self, epochs: int, base_lr: float | None = None) -> None:
        """Train L_1 .. L_s, H, P end to end with the SSL loss; the server takes the result over.

        Args:
            epochs: over the auxiliary images.
            base_lr: as `optimizer.base_lr`, which it is if None.

        Raises:
            UserError: the mechanism has no images.
        """
        if not len(self.auxiliary):
            raise UserError(NO_IMAGES)
        with self._on_device() as task:
            if base_lr is not None:
                task.optimizer_config = self.config.optimizer.model_copy(update={"base_lr": base_lr})
            task.lr_scale = self.lr_scale
            task.method.rebuild_target()
            indices = beside(task.images, torch.arange(len(self.auxiliary)))
            self.num_steps += fit(self.fabric, task, indices, epochs, self.config, self.round_index, *self._key)
            values = {key: value.cpu() for key, value in task.method.online_state().items()}
        self.server.apply(values, aggregated=False)

    def edit(self, groups: Set[str], function: Edit) -> None:
        """Change tensors of `groups` in place, by `function(model, images)`; the server takes them over.

        Args:
            groups: tensor groups, such as `block_2`.
            function: changes the online branch in place. It is handed the server's model in eval mode and all of
                the mechanism's images, float (N, C, H, W) as encoders take them; what it costs is traced without
                values, so its course must not depend on them.

        Raises:
            UserError: `function` changed a tensor of another group.
        """
        with self._on_device() as task:
            apply_edit(task.method, function, self.auxiliary.to(self.device))
            values = {key: value.cpu() for key, value in task.method.online_state().items()}
        check_edit(self.server.state, values, groups)
        self.edits.append(function)
        self.server.apply(select(values, groups), aggregated=False)

    @contextmanager
    def _on_device(self) -> Iterator[LocalTask]:
        """Model and images are on the device while the server works: a client's memory has no part of them."""
        model = self.task.method
        model.to(self.device)
        task = self._task(model, place(self.auxiliary, self.device))
        model.load_online(self.server.state)
        yield task
        model.to("cpu")

    def _task(self, model: SSLMethod, images: Pool) -> LocalTask:
        return LocalTask(model, self._trained_groups, (), self.config.optimizer, self.views, images)


NO_IMAGES = "train: the mechanism has no images; allowed: with `auxiliary()` that asks for some"


def works_on_server(mechanism: Mechanism) -> bool:
    """Whether a mechanism does something with the server's model."""
    hooks = ("auxiliary", "server_step", "end_stage")
    return any(getattr(type(mechanism), hook) is not getattr(Mechanism, hook) for hook in hooks)
