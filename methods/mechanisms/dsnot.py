"""DSnoT (Zhang et al. 2024, "Dynamic Sparse No Training", arXiv:2310.08915): the server prunes finished blocks.

No weight is trained and none changes but to zero. When a stage is over, the weights of its finished blocks'
linear layers are pruned by magnitude, as many in each output row; then each row swaps weights as long as that
lowers its expected error: one that reduces it comes back, the cheapest one of the other sign goes. Blocks are
pruned in sequence, on what the server's own images become behind the blocks pruned before.

Ours: the paper prunes language models once, after training; here a block is pruned when no later stage trains it,
so under LW-FedSSL the blocks above learn on the pruned ones. A row stops where no swap lowers its error, not at
the paper's threshold of 0.1. Pruned blocks travel as a bitmap and the weights that are left, unless a codec packs
what clients are sent; convolutions are not pruned.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fedbench.config import Config
from fedbench.encoders.tensor_groups import block_groups
from fedbench.errors import UserError
from fedbench.federation import Codec, Mechanism, ServerTraining
from fedbench.federation.sparse import RowSparse
from fedbench.federation.strategy import active_mechanisms
from fedbench.ssl import SSLMethod


@dataclass(frozen=True)
class DSnoT(Mechanism):
    """Where O rows of I weights each meet inputs x: error of row r = sum_i pruned w_ri E[x_i], with its sign.

    Comes back: the pruned weight with the largest sign(error) w E[x] / Var[x]. Goes: of the kept ones whose w E[x]
    has the other sign, the one with the smallest |w| ||x||. `sparsity=0` is the strategy itself, to the bit.
    """

    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of each row's weights that are zero, rounded down to whole weights."""
    cycles: Annotated[int, Field(ge=0, le=100_000)] = 50
    """Swaps of a row at most; 0: pruned by magnitude alone."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the pre-training pool that the server takes."""

    def check(self, config: Config) -> None:
        """Linear layers are pruned, and nobody may train a pruned block again."""
        if config.encoder.name != "vit":
            raise UserError(f"strategy.dsnot with encoder.name={config.encoder.name}; allowed: vit")
        for name, other in active_mechanisms(config.strategy).items():
            if type(other).server_step is not Mechanism.server_step:
                raise UserError(
                    f"strategy.dsnot with {name}, whose server trains finished blocks; allowed: without"
                )

    def auxiliary(self) -> float | None:
        """A share of the pool."""
        return self.share if self.sparsity else None

    def end_stage(self, server: ServerTraining) -> None:
        """Prune what no later stage trains."""
        if self.sparsity and server.finished:
            server.edit(block_groups(server.finished), partial(self.prune, blocks=server.finished))

    def codec_of_finished(self) -> Codec | None:
        """A bitmap and the weights that are left."""
        return self.form if self.sparsity else None

    @property
    def form(self) -> RowSparse:
        """Of a pruned block."""
        return RowSparse(sparsity=self.sparsity)

    def prune(self, model: SSLMethod, images: Tensor, blocks: tuple[int, ...]) -> None:
        """Prune the linear layers of `blocks`, each on its inputs behind the blocks before it."""
        hidden, done = images, 0
        for block in blocks:
            hidden = model.encoder.encode(hidden, done, block) if block else hidden
            done = block
            with _inputs_of_layers(model.encoder.blocks[block]) as inputs:
                model.encoder.encode(hidden, block, block + 1)
            for layer, x_NI in inputs.items():
                layer.weight.masked_fill_(~self.mask(layer.weight, x_NI), 0)

    def mask(self, weight_OI: Tensor, x_NI: Tensor) -> Tensor:
        """What is kept, bool (O, I), of a layer with these inputs."""
        mean_I, var_I, norm_I = x_NI.mean(0), x_NI.var(0), x_NI.norm(dim=0)
        pruned = self.form.num_zeros(weight_OI.shape[1])
        kept_OI = torch.ones_like(weight_OI, dtype=torch.bool)
        kept_OI = kept_OI.scatter(1, weight_OI.abs().topk(pruned, dim=1, largest=False).indices, False)
        adds_OI, price_OI = weight_OI * mean_I, weight_OI.abs() * norm_I
        error_O1 = (adds_OI * ~kept_OI).sum(1, keepdim=True)
        for _ in range(self.cycles if pruned else 0):
            towards_OI = error_O1.sign() * adds_OI
            gain_OI = (towards_OI / var_I.clamp_min(1e-12)).masked_fill(kept_OI | (towards_OI <= 0), -torch.inf)
            cost_OI = price_OI.masked_fill(~kept_OI | (towards_OI >= 0), torch.inf)
            grow_O1, prune_O1 = gain_OI.argmax(1, keepdim=True), cost_OI.argmin(1, keepdim=True)
            new_O1 = error_O1 - adds_OI.gather(1, grow_O1) + adds_OI.gather(1, prune_O1)
            both_O1 = gain_OI.gather(1, grow_O1).isfinite() & cost_OI.gather(1, prune_O1).isfinite()
            swaps_O1 = both_O1 & (new_O1.abs() < error_O1.abs())
            swapped_OI = kept_OI.scatter(1, grow_O1, True).scatter(1, prune_O1, False)
            kept_OI = torch.where(swaps_O1, swapped_OI, kept_OI)
            error_O1 = torch.where(swaps_O1, new_O1, error_O1)
        return kept_OI


@contextmanager
def _inputs_of_layers(block: nn.Module) -> Iterator[dict[nn.Linear, Tensor]]:
    """What each linear layer is handed while the block runs, (N, I): over images and tokens."""
    inputs: dict[nn.Linear, Tensor] = {}

    def note(layer: nn.Module, args: tuple[Tensor]) -> None:
        assert isinstance(layer, nn.Linear)
        inputs[layer] = args[0].flatten(0, -2)

    layers = [part for part in block.modules() if isinstance(part, nn.Linear)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    yield inputs
    for hook in hooks:
        hook.remove()
