"""What codecs have in common that send some entries of a tensor group, and where these are."""

from abc import abstractmethod
from dataclasses import dataclass
from math import ceil
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedbench.encoders.tensor_groups import Specs, StateDict, TensorSpec
from fedbench.errors import UserError
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


@dataclass(frozen=True)
class RowSparse(Codec):
    """Linear layers with int(sparsity I) of the I weights in each row zero: where the others are, and these.

    Nothing is lost. Bytes of a layer of O rows: ceil(O I / 8) + itemsize O (I - int(sparsity I)), or all of its
    weights where that is less. What else the block has travels as it is.
    """

    download_of: Literal["change", "values"] = "values"
    """What is packed on the way down; a change of a pruned layer is not sparse."""
    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of a row's weights that are zero, rounded down to whole weights."""

    def works(self, way: Way) -> bool:
        """Down: nobody trains what is finished."""
        return way.direction == "download"

    def num_zeros(self, columns: int) -> int:
        """Of a row."""
        return int(self.sparsity * columns)

    def wire(self, specs: Specs, way: Way) -> Specs:
        """`KEY.bitmap` and `KEY.values` in place of a layer's weight `KEY`."""
        travelling: dict[str, TensorSpec] = {}
        for key, spec in specs.items():
            if not self._is_sparse(key, spec):
                travelling[key] = spec
                continue
            rows, columns = spec.shape
            travelling[f"{key}.{BITMAP}"] = TensorSpec((ceil(spec.numel / 8),), torch.uint8, False)
            travelling[f"{key}.{VALUES}"] = spec._replace(shape=(rows * (columns - self.num_zeros(columns)),))
        return travelling

    def pack(self, values: StateDict, way: Way, draw: torch.Generator) -> StateDict:
        """Of each row as many weights as are not to be zero, though some of them may be.

        Raises:
            UserError: a row has more that are not zero.
        """
        packed: StateDict = {}
        for key, weight in values.items():
            if not self._is_sparse(key, TensorSpec(tuple(weight.shape), weight.dtype, False)):
                packed[key] = weight
                continue
            is_sent = self._sent(key, weight)
            packed[f"{key}.{BITMAP}"] = torch.from_numpy(np.packbits(is_sent.numpy()))
            packed[f"{key}.{VALUES}"] = weight[is_sent]
        return packed

    def unpack(self, packed: StateDict, specs: Specs, way: Way) -> StateDict:
        """Zero, but for what was sent."""
        values: StateDict = {}
        for key, spec in specs.items():
            if not self._is_sparse(key, spec):
                values[key] = packed[key]
                continue
            is_sent = np.unpackbits(packed[f"{key}.{BITMAP}"].numpy(), count=spec.numel).astype(bool)
            row_N = torch.zeros(spec.numel, dtype=spec.dtype)
            row_N[torch.from_numpy(is_sent)] = packed[f"{key}.{VALUES}"]
            values[key] = row_N.reshape(spec.shape)
        return values

    def _sent(self, key: str, weight_OI: Tensor) -> Tensor:
        """Where the weights are that are sent, bool (O, I)."""
        kept = weight_OI.shape[1] - self.num_zeros(weight_OI.shape[1])
        is_zero_OI = (weight_OI == 0) & ~weight_OI.signbit()  # -0.0 is another zero
        if ((~is_zero_OI).sum(1) > kept).any():
            raise UserError(f"{key} has rows of more than {kept} weights that are not zero; allowed: {kept}")
        places_OK = is_zero_OI.to(torch.uint8).sort(dim=1, stable=True).indices[:, :kept]
        return torch.zeros_like(is_zero_OI).scatter(1, places_OK, True)

    def _is_sparse(self, key: str, spec: TensorSpec) -> bool:
        """A linear layer's weight, where it is worth it; what decides on gates of channels is no such layer."""
        if len(spec.shape) != 2 or not key.endswith(".weight") or key.endswith(".gate.weight"):
            return False
        rows, columns = spec.shape
        saved = rows * self.num_zeros(columns) * spec.dtype.itemsize
        return saved > ceil(spec.numel / 8)
