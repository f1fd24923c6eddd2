"""Payloads in half precision: each number as float16 or bfloat16, rounded to the nearest."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from fedbench.encoders.tensor_groups import StateDict
from fedbench.federation import Codec, Specs, Way

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Cast(Codec):
    """bytes = 2 n; fp32: none, to the bit."""

    order: ClassVar[int] = 1

    download: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Type of a number on the way down; what is too large for fp16 becomes its largest."""
    upload: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Type of a number on the way up."""

    def name(self, way: Way) -> str:
        """Of the type."""
        return self.download if way.direction == "download" else self.upload

    def works(self, way: Way) -> bool:
        """Unless numbers are whole."""
        return self.name(way) in TYPES

    def wire(self, specs: Specs, way: Way) -> Specs:
        """The same tensors in another type."""
        dtype = TYPES[self.name(way)]
        return {key: spec._replace(dtype=dtype) for key, spec in specs.items()}

    def pack(self, values: StateDict, way: Way, draw: torch.Generator) -> StateDict:
        """Round."""
        dtype = TYPES[self.name(way)]
        largest = torch.finfo(dtype).max
        finite = {key: value.clamp(-largest, largest) for key, value in values.items()}
        return {key: torch.where(v.isinf(), v, finite[key]).to(dtype) for key, v in values.items()}

    def unpack(self, packed: StateDict, specs: Specs, way: Way) -> StateDict:
        """As they were, without what was rounded."""
        return {key: packed[key].to(spec.dtype) for key, spec in specs.items()}
