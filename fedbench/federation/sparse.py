"""What codecs have in common that send some entries of a tensor group, and where these are."""

from abc import abstractmethod
from dataclasses import dataclass
from math import ceil
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedbench.encoders.tensor_groups import Specs, StateDict, TensorSpec
from fedbench.federation.codec import Codec, Way

VALUES, INDICES, BITMAP = "values", "indices", "bitmap"
Density = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class Sparse(Codec):
    """k = ceil(density n) of the n entries of a group, in one row; the others are zero where they arrive.

    Where they are: k indices of four bytes, or a bitmap of n bits, whichever is smaller.
    """

    download: Density = 0.1
    """Share of a group's entries on the way down."""
    upload: Density = 0.1
    """Share of a group's entries on the way up."""

    @abstractmethod
    def choose(self, row_N: Tensor, count: int, draw: torch.Generator) -> Tensor:
        """The places of the `count` entries that are sent, in any order, int64."""

    def density(self, way: Way) -> float:
        """Share of the entries that are sent."""
        return self.download if way.direction == "download" else self.upload

    def works(self, way: Way) -> bool:
        """Unless all are sent."""
        return self.density(way) < 1

    def wire(self, specs: Specs, way: Way) -> Specs:
        """Values and places."""
        total = sum(spec.numel for spec in specs.values())
        count = self._count(total, way)
        places = {INDICES: TensorSpec((count,), torch.int32, False)}
        if _has_bitmap(count, total):
            places = {BITMAP: TensorSpec((ceil(total / 8),), torch.uint8, False)}
        return {VALUES: TensorSpec((count,), torch.float32, False), **places}

    def pack(self, values: StateDict, way: Way, draw: torch.Generator) -> StateDict:
        """Choose; values travel in the order of their places."""
        row_N = torch.cat([value.float().reshape(-1) for value in values.values()])
        count = self._count(len(row_N), way)
        chosen = self.choose(row_N, count, draw).sort().values
        places = {INDICES: chosen.int()}
        if _has_bitmap(count, len(row_N)):
            is_chosen = torch.zeros(len(row_N), dtype=torch.bool)
            is_chosen[chosen] = True
            places = {BITMAP: torch.from_numpy(np.packbits(is_chosen.numpy()))}
        flaw = 0 * row_N.sum()  # not a number where any entry is none: the receiver is to see it
        return {VALUES: row_N[chosen] + flaw, **places}

    def unpack(self, packed: StateDict, specs: Specs, way: Way) -> StateDict:
        """Zero, but for what was sent.

        Raises:
            ValueError: the places are not as many as the values, or beyond the group.
        """
        sizes = [spec.numel for spec in specs.values()]
        row_N = torch.zeros(sum(sizes))
        places = _places(packed, len(row_N))
        if len(places) != len(packed[VALUES]) or not torch.all((places >= 0) & (places < len(row_N))):
            raise ValueError(f"{len(packed[VALUES])} values with places that do not fit {len(row_N)} entries")
        row_N[places] = packed[VALUES]
        parts = zip(specs.items(), row_N.split(sizes), strict=True)
        return {key: part.to(spec.dtype).reshape(spec.shape) for (key, spec), part in parts}

    def _count(self, total: int, way: Way) -> int:
        """k."""
        return ceil(self.density(way) * total)


def _has_bitmap(count: int, total: int) -> bool:
    return ceil(total / 8) < 4 * count


def _places(packed: StateDict, total: int) -> Tensor:
    if BITMAP in packed:
        return torch.from_numpy(np.unpackbits(packed[BITMAP].numpy(), count=total)).nonzero().reshape(-1)
    return packed[INDICES].long()
