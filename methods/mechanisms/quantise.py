"""k-bit payloads: each tensor's numbers on an even grid of 2^k values from its least to its largest.

Rounding is stochastic, as in QSGD (Alistarh et al. 2017, arXiv:1610.02132): a number goes to one of its two
neighbours, in proportion to how near it is, so that on average none is changed. Ours: one grid for each tensor;
with 1 bit it has two values, and they are not the signs.
"""

from dataclasses import dataclass
from math import ceil
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedbench.encoders.tensor_groups import StateDict
from fedbench.federation import Codec, Specs, TensorSpec, Way

CODES, GRIDS = "codes", "grids"


@dataclass(frozen=True)
class Quantise(Codec):
    """bytes = ceil(k n / 8) + 8 for each tensor; 32 bits: none, to the bit."""

    order: ClassVar[int] = 1

    download: Literal[1, 2, 4, 8, 32] = 8
    """Bits of a number on the way down."""
    upload: Literal[1, 2, 4, 8, 32] = 8
    """Bits of a number on the way up."""

    def bits(self, way: Way) -> int:
        """Of a number."""
        return self.download if way.direction == "download" else self.upload

    def works(self, way: Way) -> bool:
        """Unless numbers are whole."""
        return self.bits(way) < 32

    def wire(self, specs: Specs, way: Way) -> Specs:
        """All codes of a group in a row of bytes, and two ends of a grid for each tensor."""
        count = sum(spec.numel for spec in specs.values())
        codes = TensorSpec((ceil(count * self.bits(way) / 8),), torch.uint8, False)
        return {CODES: codes, GRIDS: TensorSpec((len(specs), 2), torch.float32, False)}

    def pack(self, values: StateDict, way: Way, draw: torch.Generator) -> StateDict:
        """Codes: (x - low) / step, rounded to a neighbour by chance."""
        top = 2 ** self.bits(way) - 1
        grids = torch.stack([torch.stack(value.aminmax()) for value in values.values()]).float()
        codes = [_codes(value, grid, top, draw) for value, grid in zip(values.values(), grids, strict=True)]
        return {CODES: _bytes(torch.cat(codes), self.bits(way)), GRIDS: grids}

    def unpack(self, packed: StateDict, specs: Specs, way: Way) -> StateDict:
        """low + code * step."""
        bits = self.bits(way)
        sizes = [spec.numel for spec in specs.values()]
        codes = _numbers(packed[CODES], bits, sum(sizes)).split(sizes)
        values: StateDict = {}
        for (key, spec), one, (low, high) in zip(specs.items(), codes, packed[GRIDS], strict=True):
            number = torch.lerp(low, high, one.float() / (2**bits - 1))
            values[key] = number.to(spec.dtype).reshape(spec.shape)
        return values


def _codes(value: Tensor, grid: Tensor, top: int, draw: torch.Generator) -> Tensor:
    low, high = grid
    place = (value.float().reshape(-1) - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny) * top
    chance = torch.rand(place.shape, generator=draw)
    return (place + chance).floor().clamp(0, top).to(torch.uint8)


def _bytes(codes: Tensor, bits: int) -> Tensor:
    """Codes of 1, 2, 4 or 8 bits in a row, the first one lowest in its byte."""
    each = 8 // bits
    padded = torch.nn.functional.pad(codes, (0, -len(codes) % each)).reshape(-1, each)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    return (padded << shifts).sum(1, dtype=torch.uint8)


def _numbers(row: Tensor, bits: int, count: int) -> Tensor:
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    return ((row[:, None] >> shifts) & (2**bits - 1)).reshape(-1)[:count]
