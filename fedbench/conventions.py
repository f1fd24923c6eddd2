"""What a figure counts: the three conventions in words, printed with every figure.

`step` is what really happens in fedbench. The two others are the rules behind the tables of [LW], for comparing
with them: `paper-v4` (arXiv:2401.11647v4) and `paper-v3` (its third version, encoder blocks alone).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

ConventionName = Literal["step", "paper-v4", "paper-v3"]


@dataclass(frozen=True)
class Convention:
    """A rule, in words for whoever reads a figure of it."""

    name: ConventionName
    flops: str
    traffic: str


STEP = Convention(
    "step",
    "matrix products, convolutions and attention of local steps as executed; both views, all branches, "
    "forward and backward; 1 multiply-add = 2",
    "whole payloads both ways: values, buffers, framing, hand-over, catch-up",
)
PAPER_V4 = Convention(
    "paper-v4",
    "multiply-accumulates of one view (both where there is no target branch) through the online branch for one "
    "sample, attention products and LayerNorm (5 per element) counted; trained parts x3, frozen x1; summed over "
    "R x E local epochs",
    "parameters of what is exchanged in every round, both ways, all R rounds; no running statistics, framing, "
    "hand-over or catch-up; the paper's GB is 1000 MiB",
)
PAPER_V3 = Convention(
    "paper-v3",
    "as paper-v4, encoder blocks alone (the paper's rule for FLOPs is not known to us)",
    "as paper-v4, encoder blocks alone: no stem, norm or heads",
)
CONVENTIONS: Mapping[str, Convention] = {rule.name: rule for rule in (STEP, PAPER_V4, PAPER_V3)}
