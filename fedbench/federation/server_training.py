"""The server trains: its own working model, its own auxiliary images, everything that exists at the stage."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fedbench.config.schema import Config
from fedbench.data import Views
from fedbench.data.pool import Pool, beside, place
from fedbench.federation.plan import StagePlan
from fedbench.federation.server import Server
from fedbench.ssl import SSLMethod
from fedbench.training.local import LocalTask, build_fabric, fit


class ServerTraining:
    """What a mechanism's `server_step` is handed: the server's model, and a way to train it."""

    def __init__(
        self, config: Config, server: Server, views: Views, auxiliary: Tensor, device: torch.device
    ) -> None:
        self.config = config
        self.server = server
        self.views = views
        self.auxiliary = auxiliary  # uint8 (N, C, H, W)
        self.device = device
        self.fabric = build_fabric(config.precision, device)
        self.num_steps = 0  # taken in this round
        self.task: LocalTask | None = None  # on the CPU: what a step costs is read off it

    def start_stage(self, model: SSLMethod, plan: StagePlan) -> None:
        """A new working model, of which all blocks are trained."""
        self._trained_groups = StagePlan.end_to_end(plan.depth).trained_groups
        self.task = self._task(model, self.auxiliary)

    def start_round(self, round_index: int) -> None:
        """Every round has its own random streams."""
        self.round_index = round_index
        self.num_steps = 0

    def train(self, epochs: int, base_lr: float | None = None) -> None:
        """Train L_1 .. L_s, H, P end to end with the SSL loss; the server takes the result over.

        Args:
            epochs: over the auxiliary images.
            base_lr: as `optimizer.base_lr`, which it is if None.
        """
        assert self.task is not None, "start_stage comes first"
        with self._on_device(self.task.method) as task:
            if base_lr is not None:
                task.optimizer_config = self.config.optimizer.model_copy(update={"base_lr": base_lr})
            task.method.load_online(self.server.state)
            task.method.rebuild_target()
            indices = beside(task.images, torch.arange(len(self.auxiliary)))
            self.num_steps += fit(self.fabric, task, indices, epochs, self.config, self.round_index, "server")
            values = {key: value.cpu() for key, value in task.method.online_state().items()}
        self.server.apply(values, aggregated=False)

    @contextmanager
    def _on_device(self, model: SSLMethod) -> Iterator[LocalTask]:
        """Model and images are on the device while the server trains: a client's memory has no part of them."""
        model.to(self.device)
        yield self._task(model, place(self.auxiliary, self.device))
        model.to("cpu")

    def _task(self, model: SSLMethod, images: Pool) -> LocalTask:
        return LocalTask(model, self._trained_groups, (), self.config.optimizer, self.views, images)
