"""One MLP for all blocks, as in MobiLlama (arXiv:2402.16840): stored, sent and averaged once; FLOPs as before."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from fedbench.encoders import Encoder, Transform
from fedbench.encoders.transform import Carrier, Shared
from fedbench.errors import UserError


@dataclass(frozen=True)
class SharedMLP(Transform):
    """Every block calls the first block's MLP; norms and attention stay each block's own."""

    trained: Literal["always", "first"] = "always"
    """Where blocks are frozen: always: the MLP is trained and sent in every stage, so that what frozen blocks
    compute still changes; first: it goes with the stem, trained as long as the first block is."""

    def apply(self, encoder: Encoder) -> None:
        """Keep one MLP."""
        found = (getattr(block, "mlp", None) for block in encoder.blocks)
        mlps = [mlp for mlp in found if isinstance(mlp, nn.Module)]
        if any(isinstance(mlp, Shared) for mlp in mlps):
            raise UserError("encoder.transforms: shared_mlp twice; allowed: once")
        if len(mlps) < len(encoder.blocks):
            raise UserError("encoder.transforms: shared_mlp finds blocks without an MLP; allowed: a transformer")
        mlp = mlps[0]
        if self.trained == "always":
            encoder.shared = mlp
        else:
            encoder.stem = Carrier(encoder.stem, mlp)
        for block in encoder.blocks:
            block.mlp = Shared(mlp)
