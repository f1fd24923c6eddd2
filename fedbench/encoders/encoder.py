"""The encoder F: a stem, blocks L_1 .. L_s, a final norm, pooling and, while short, a reshaping layer."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedbench.encoders.tensor_groups import block_group


class Encoder(nn.Module):
    """Maps images (B, C, H, W) to features (B, `feature_dim`).

    `feature_dim` is the width that the heads see at every depth. `reshape` maps a shorter encoder's output
    to that width ([LW] for ResNet-18); it is the identity where widths agree.
    """

    def __init__(
        self,
        stem: nn.Module,
        blocks: list[nn.Module],
        norm: nn.Module,
        pool: Callable[[Tensor], Tensor],
        reshape: nn.Module,
        feature_dim: int,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.pool = pool
        self.reshape = reshape
        self.feature_dim = feature_dim
        self.active: Sequence[int] = range(len(blocks))  # blocks that are run; depth dropout leaves some out
        self.prefix: SharedPrefix | None = None  # runs the first blocks, together with others

    def forward(self, images: Tensor) -> Tensor:
        """Features of images, (B, C, H, W) -> (B, feature_dim)."""
        if self.prefix is None:
            hidden = self.encode(images, 0, len(self.blocks))
        else:
            hidden = self.encode(self.prefix.run(self, images), self.prefix.num_blocks, len(self.blocks))
        return self.reshape(self.pool(self.norm(hidden)))

    def encode(self, x: Tensor, from_block: int, to_block: int) -> Tensor:
        """Run the active ones of blocks from_block .. to_block - 1; from 0, images go through the stem first."""
        hidden = x if from_block else self.stem(x)
        for number in self.active:
            if from_block <= number < to_block:
                hidden = self.blocks[number](hidden)
        return hidden

    def parts(self) -> dict[str, nn.Module]:
        """The modules of the encoder by tensor group, in the order of the forward pass."""
        blocks = {block_group(number): block for number, block in enumerate(self.blocks)}
        return {"stem": self.stem, **blocks, "norm": self.norm, "reshape": self.reshape}

    def num_frozen(self) -> int:
        """Leading blocks of which nothing is trained, the stem with them."""
        for number, part in enumerate([self.stem, *self.blocks]):
            if any(weight.requires_grad for weight in part.parameters()):
                return max(number - 1, 0)
        return len(self.blocks)


class SharedPrefix:
    """The frozen first blocks, computed once per view for all encoders of a local step.

    Under LW-FedSSL online branch, target branch and aligned global model hold the same frozen weights, so what
    they make of a view is computed once, by the first that asks, without gradient: the same bits for a third of
    the work. A view is recognised as the same tensor object, unchanged since.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._known: list[tuple[Tensor, int, Tensor]] = []  # view, its version, its hidden states

    def run(self, encoder: Encoder, images: Tensor) -> Tensor:
        """Hidden states behind the frozen blocks, (B, C, H, W) -> whatever the blocks exchange.

        Where somebody wants the gradient of the view itself, nothing is shared.
        """
        if torch.is_grad_enabled() and images.requires_grad:
            return encoder.encode(images, 0, self.num_blocks)
        for view, version, hidden in self._known:
            if view is images and version == images._version:
                return hidden
        with torch.no_grad():
            hidden = encoder.encode(images, 0, self.num_blocks)
        self._known.append((images, images._version, hidden))
        return hidden

    def forget(self) -> None:
        """At the end of a step: its views are gone."""
        self._known.clear()
