"""The encoder F: a stem, blocks L_1 .. L_s, a final norm, pooling and, while short, a reshaping layer."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedbench.encoders.tensor_groups import block_group
from fedbench.encoders.ways import Ways


class Encoder(nn.Module):
    """Maps images (B, C, H, W) to features (B, `feature_dim`).

    Made whole, by a plugin; `shorten` leaves the first blocks. `feature_dim` is the width that the heads see at
    every depth: where the width behind a block differs from the last one's, `reshape` maps a shorter encoder's
    output to it ([LW] for ResNet-18: a temporary layer, thrown away at the end of the stage).
    """

    def __init__(
        self,
        stem: nn.Module,
        blocks: Sequence[nn.Module],
        norm: nn.Module,
        pool: Callable[[Tensor], Tensor],
        widths: Sequence[int],
    ) -> None:
        """`widths`: dimensions of what `pool` makes of the output of each block."""
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.shared: nn.Module = nn.Identity()  # what several blocks use, if a transform makes that
        self.norm = norm
        self.pool = pool
        self.reshape: nn.Module = nn.Identity()
        self.widths = tuple(widths)
        self.active: Sequence[int] = range(len(blocks))  # blocks that are run; depth dropout leaves some out
        self.prefix: SharedPrefix | None = None  # runs the first blocks, together with others
        self.ways = Ways()
        self.num_towers = 1  # networks side by side; a feature is theirs, one behind the other

    @property
    def feature_dim(self) -> int:
        """Dimensions of a feature, at every depth."""
        return self.widths[-1]

    def shorten(self, depth: int) -> None:
        """Leave the first `depth` blocks; a reshaping layer draws from torch's global generator."""
        self.blocks = self.blocks[:depth]
        self.active = range(depth)
        if self.widths[depth - 1] != self.feature_dim:
            self.reshape = nn.Linear(self.widths[depth - 1], self.feature_dim)

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
        return {"stem": self.stem, **blocks, "shared": self.shared, "norm": self.norm, "reshape": self.reshape}

    def num_frozen(self) -> int:
        """Leading blocks of which nothing is trained, the stem with them; 0 while what they share is trained."""
        if any(weight.requires_grad for weight in self.shared.parameters()):
            return 0
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
        self._known: list[tuple[Tensor, int, str, Tensor]] = []  # view, its version, way, its hidden states

    def run(self, encoder: Encoder, images: Tensor) -> Tensor:
        """Hidden states behind the frozen blocks, (B, C, H, W) -> whatever the blocks exchange.

        Where somebody wants the gradient of the view itself, nothing is shared.
        """
        if torch.is_grad_enabled() and images.requires_grad:
            return encoder.encode(images, 0, self.num_blocks)
        way = encoder.ways.taken
        for view, version, taken, hidden in self._known:
            if view is images and version == images._version and taken == way:
                return hidden
        with torch.no_grad():
            hidden = encoder.encode(images, 0, self.num_blocks)
        self._known.append((images, images._version, way, hidden))
        return hidden

    def forget(self) -> None:
        """At the end of a step: its views are gone."""
        self._known.clear()
