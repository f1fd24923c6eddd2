"""Two towers on two renderings of an image (after LW-FedMML, arXiv:2407.15426): colours, and their edges.

Shapes: B images, C channels; between stem and pooling the towers' tensors are stacked in dimension 1.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbench.encoders import Encoder, Transform
from fedbench.errors import UserError


def edges(images_BCHW: Tensor) -> Tensor:
    """Length of each channel's gradient, from differences of neighbours; 0 beyond the last row and column."""
    down = F.pad(images_BCHW.diff(dim=2), (0, 0, 0, 1))
    right = F.pad(images_BCHW.diff(dim=3), (0, 1, 0, 0))
    squares = down.square() + right.square() + 1e-12  # at 0 the root has no gradient
    return squares * squares.rsqrt()  # the last bit of a root depends on the processor


class SideBySide(nn.Module):
    """A module of each tower: (B, 2, ...) -> (B, 2, ...)."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, hidden: Tensor) -> Tensor:
        """Each on its own half."""
        first, second = hidden.unbind(1)
        return torch.stack([self.first(first), self.second(second)], dim=1)


class Stems(SideBySide):
    """The towers' stems, each on its rendering: images (B, C, H, W) -> (B, 2, ...)."""

    def __init__(self, first: nn.Module, second: nn.Module, render: Callable[[Tensor], Tensor]) -> None:
        super().__init__(first, second)
        self.render = render

    def forward(self, images: Tensor) -> Tensor:
        """The second one sees what `render` makes of the images."""
        return torch.stack([self.first(images), self.second(self.render(images))], dim=1)


@dataclass(frozen=True)
class OneBehindTheOther:
    """Pooling of both towers: (B, 2, ...) -> (B, 2 W)."""

    pool: Callable[[Tensor], Tensor]

    def __call__(self, hidden: Tensor) -> Tensor:
        """The first tower's W dimensions come first."""
        return torch.cat([self.pool(half) for half in hidden.unbind(1)], dim=1)


def unchanged(images: Tensor) -> Tensor:
    """The image itself."""
    return images


RENDERINGS: dict[str, Callable[[Tensor], Tensor]] = {"edges": edges, "colours": unchanged}


@dataclass(frozen=True)
class TwoTowers(Transform):
    """The encoder twice: the k-th blocks of both towers are one block, trained, frozen and sent together.

    So a layer-wise strategy is LW-FedMML, and `prog_fedssl` Prog-FedMML, with `ssl=clip` between the towers. Ours:
    two renderings of one image in place of two modalities; towers of one kind that begin with the same values, for
    both of which `encoder.init` serves.
    """

    second: Literal["edges", "colours"] = "edges"
    """What the second tower sees; colours: the image, as the first does."""

    def apply(self, encoder: Encoder) -> None:
        """Set a copy beside every part."""
        if encoder.num_towers > 1:
            raise UserError("encoder.transforms: two_towers twice; allowed: once")
        if len(set(encoder.widths)) > 1:
            raise UserError(
                "encoder.transforms: two_towers finds blocks of several widths, and a short encoder would mix the "
                "towers; allowed: an encoder whose blocks have one width, such as vit and cnn"
            )
        twin = copy.deepcopy(encoder, {id(encoder.ways): encoder.ways})
        encoder.stem = Stems(encoder.stem, twin.stem, RENDERINGS[self.second])
        pairs = zip(encoder.blocks, twin.blocks, strict=True)
        encoder.blocks = nn.ModuleList([SideBySide(first, second) for first, second in pairs])
        encoder.shared = SideBySide(encoder.shared, twin.shared)
        encoder.norm = SideBySide(encoder.norm, twin.norm)
        encoder.pool = OneBehindTheOther(encoder.pool)
        encoder.widths = tuple(2 * width for width in encoder.widths)
        encoder.num_towers = 2
