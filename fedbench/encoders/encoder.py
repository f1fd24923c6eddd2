"""The encoder F: a stem, blocks L_1 .. L_s, a final norm, pooling and, while short, a reshaping layer."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn


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

    def forward(self, images: Tensor) -> Tensor:
        """Features of images, (B, C, H, W) -> (B, feature_dim)."""
        hidden = self.stem(images)
        for number in self.active:
            hidden = self.blocks[number](hidden)
        return self.reshape(self.pool(self.norm(hidden)))

    def parts(self) -> dict[str, nn.Module]:
        """The modules of the encoder by tensor group, in the order of the forward pass."""
        blocks = {f"block_{number}": block for number, block in enumerate(self.blocks, start=1)}
        return {"stem": self.stem, **blocks, "norm": self.norm, "reshape": self.reshape}
