"""PowerSGD payloads (Vogels et al. 2019, arXiv:1905.13727, Algorithm 1): matrices as P Q^T of low rank.

Ours: PowerSGD sums P and Q over the workers before either is whole; here each client sends both, and the server
multiplies. Q begins by chance in each round (theirs is the last step's), which `iterations` makes up for.
"""

from dataclasses import dataclass
from math import prod
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedbench.encoders.tensor_groups import StateDict
from fedbench.federation import Codec, Specs, TensorSpec, Way

Rank = Annotated[int, Field(ge=0, le=100_000)]


@dataclass(frozen=True)
class LowRank(Codec):
    """An m x n matrix costs r (m + n) numbers; what that does not make smaller travels whole.

    Rank 0: none, to the bit. Convolutions are matrices of (out, in * height * width), as in the paper.
    """

    download: Rank = 2
    """r on the way down."""
    upload: Rank = 2
    """r on the way up."""
    iterations: Annotated[int, Field(ge=1, le=100)] = 2
    """Of the power method; the paper's one, from where the last step ended."""
    error_feedback: bool = True
    """Whether a client adds what its upload lost to its next one, as the paper does; it keeps that on its disk."""

    def rank(self, way: Way) -> int:
        """Of P and Q."""
        return self.download if way.direction == "download" else self.upload

    def works(self, way: Way) -> bool:
        """Unless matrices travel whole."""
        return self.rank(way) > 0

    def wire(self, specs: Specs, way: Way) -> Specs:
        """P (m, r) and Q (n, r) for each matrix that is larger."""
        forms: dict[str, TensorSpec] = {}
        for key, spec in specs.items():
            if self._is_factored(spec.shape, way):
                rank, rows = self.rank(way), spec.shape[0]
                forms[f"{key}.p"] = spec._replace(shape=(rows, rank))
                forms[f"{key}.q"] = spec._replace(shape=(prod(spec.shape[1:]), rank))
            else:
                forms[key] = spec
        return forms

    def pack(self, values: StateDict, way: Way, draw: torch.Generator) -> StateDict:
        """P <- orthogonalised M Q, Q <- M^T P."""
        packed: StateDict = {}
        for key, value in values.items():
            if self._is_factored(value.shape, way):
                p, q = self._factors(value.reshape(len(value), -1), self.rank(way), draw)
                packed |= {f"{key}.p": p, f"{key}.q": q}
            else:
                packed[key] = value
        return packed

    def unpack(self, packed: StateDict, specs: Specs, way: Way) -> StateDict:
        """P Q^T."""
        return {
            key: (packed[f"{key}.p"] @ packed[f"{key}.q"].T).reshape(spec.shape)
            if self._is_factored(spec.shape, way)
            else packed[key]
            for key, spec in specs.items()
        }

    def _is_factored(self, shape: tuple[int, ...], way: Way) -> bool:
        rows, columns = (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))
        return self.rank(way) * (rows + columns) < rows * columns

    def _factors(self, matrix_MN: Tensor, rank: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        q_NR = torch.randn(matrix_MN.shape[1], rank, generator=draw)
        for _ in range(self.iterations):
            p_MR = torch.linalg.qr(matrix_MN @ q_NR).Q.contiguous()
            q_NR = matrix_MN.T @ p_MR
        return p_MR, q_NR
