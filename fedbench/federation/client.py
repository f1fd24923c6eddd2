"""A client's visit in a round: decode what was sent, train, encode what was trained.

One working model per worker serves all its clients in turn. What a client trains from is what was decoded from
bytes: groups that the client holds already came to this worker in an earlier payload, in the same version.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from fedbench.config.schema import Config, OptimizerConfig
from fedbench.data import Views
from fedbench.federation.model import freeze_all_but
from fedbench.federation.payload import StateDict, decode, encode, select
from fedbench.federation.plan import StagePlan, group_of
from fedbench.federation.server import Download
from fedbench.federation.strategy import LocalStep, Strategy
from fedbench.random import generator, stream
from fedbench.ssl import SSLMethod

# Lightning announces its devices once per Trainer, warns that frozen blocks are in eval mode (which is what
# freezing means here) and that a short epoch has few batches.
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning", message=".*(in eval mode|treespec|num_workers).*")


@dataclass(frozen=True)
class Upload:
    """What a client sends back after local training.

    Attributes:
        data: safetensors bytes of the uploaded groups.
        num_samples: |D^n|.
        num_steps: local steps taken.
        loss: mean of the local steps' losses, the strategy's term included.
        peak_memory_bytes: the CUDA allocator's peak during this training; None on a CPU, which has none.
    """

    data: bytes
    num_samples: int
    num_steps: int
    loss: float
    peak_memory_bytes: int | None


class LocalTask(LightningModule):
    """Local training: views of a batch, the SSL method's loss plus the strategy's term, AdamW, momentum."""

    def __init__(
        self, method: SSLMethod, strategy: Strategy, optimizer: OptimizerConfig, views: Views, images: Tensor
    ) -> None:
        super().__init__()
        self.method = method
        self.strategy = strategy
        self.optimizer_config = optimizer
        self.views = views
        self.images = images  # uint8 (N, C, H, W), on the device
        self.generator = torch.Generator(images.device)
        self.received: Mapping[str, Tensor] = {}
        self.trained = {key: value for key, value in method.named_parameters() if value.requires_grad}
        self.loss_sum = torch.zeros((), device=images.device)

    def step_loss(self, views: tuple[Tensor, Tensor]) -> Tensor:
        """SSL loss over two views (B, C, H, W), plus the strategy's term if it has one."""
        output = self.method.training_step(views)
        added = self.strategy.local_loss(LocalStep(output, self.trained, self.received))
        return output["loss"] if added is None else output["loss"] + added

    def training_step(self, indices: Tensor, batch_idx: int) -> Tensor:
        """One local step on the samples `indices` (B,)."""
        loss = self.step_loss(self.views(self.images[indices], self.generator))
        self.loss_sum += loss.detach()
        return loss

    def on_train_batch_end(self, *_: object) -> None:
        """The target branch follows the online branch."""
        self.method.update_target()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """A fresh AdamW over the trained parameters: frozen ones have no state and no weight decay."""
        return torch.optim.AdamW(
            self.trained.values(),
            lr=self.optimizer_config.lr,
            weight_decay=self.optimizer_config.weight_decay,
            fused=True,
        )


class LocalBatches:
    """Batches of sample indices, shuffled anew every epoch; an incomplete last batch is dropped.

    A client with fewer samples than a batch trains on one batch of all of them.
    """

    def __init__(self, indices: Tensor, batch_size: int, shuffle: torch.Generator) -> None:
        self.indices = indices
        self.batch_size = min(batch_size, len(indices))
        self.shuffle = shuffle

    def __len__(self) -> int:
        return len(self.indices) // self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.indices), generator=self.shuffle)
        shuffled = self.indices[order.to(self.indices.device)]
        return iter(shuffled[: len(self) * self.batch_size].split(self.batch_size))


class Worker:
    """Trains one client after the other on one working model."""

    def __init__(self, config: Config, strategy: Strategy, views: Views, images: Tensor) -> None:
        self.config = config
        self.strategy = strategy
        self.views = views
        self.images = images
        self.task: LocalTask | None = None
        self._loaded: dict[str, int] = {}  # group -> version of its values in the working model

    def start_stage(self, model: SSLMethod, plan: StagePlan) -> None:
        """A new working model. Its initial values count for nothing: groups come from payloads only."""
        if self.task is not None:
            model.load_online(select(self.task.method.online_state(), self._loaded))
        freeze_all_but(model, plan.trained_groups)
        model.to(self.images.device)
        self.task = LocalTask(model, self.strategy, self.config.optimizer, self.views, self.images)
        self.plan = plan

    def train(self, client: int, indices: Tensor, round_index: int, download: Download) -> Upload:
        """Train from what was sent, send back what was trained  ([LW] Algorithm 1, the client's part)."""
        assert self.task is not None, "start_stage comes first"
        self.task.received = self._receive(download)
        self.task.method.rebuild_target()
        self.task.loss_sum.zero_()
        key = (round_index, client)
        self.task.generator.manual_seed(stream(self.config.seed, "augment", *key))
        torch.manual_seed(stream(self.config.seed, "noise", *key))  # dropout, and whatever a plugin draws
        batches = LocalBatches(
            indices, self.config.optimizer.batch_size, generator(self.config.seed, "shuffle", *key)
        )
        if self.images.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.images.device)
        self._trainer().fit(self.task, batches)
        return self._send(batches)

    def _receive(self, download: Download) -> StateDict:
        """Load the payload; what it does not carry must be in the working model in the needed version."""
        assert self.task is not None
        received = decode(download.data)
        self.task.method.load_online(received)
        self._loaded.update({group: download.versions[group] for group in map(group_of, received)})
        assert self._loaded == download.versions, (self._loaded, download.versions)
        return {key: value.to(self.images.device) for key, value in received.items()}

    def _send(self, batches: LocalBatches) -> Upload:
        assert self.task is not None
        for group in self.plan.trained_groups:
            self._loaded.pop(group, None)  # overwritten: it must arrive again before anybody trains from it
        data = encode(select(self.task.method.online_state(), self.plan.uploaded_groups))
        num_steps = len(batches) * self.config.federation.local_epochs
        peak = torch.cuda.max_memory_allocated(self.images.device) if self.images.is_cuda else None
        return Upload(data, len(batches.indices), num_steps, self.task.loss_sum.item() / num_steps, peak)

    def _trainer(self) -> Trainer:
        return Trainer(
            max_epochs=self.config.federation.local_epochs,
            accelerator="gpu" if self.images.is_cuda else "cpu",
            devices=1,
            precision=self.config.precision,
            barebones=True,
        )
