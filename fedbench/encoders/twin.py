"""The model of another library that computes what an encoder computes, from the same tensors under other names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Twin:
    """How to build the twin and how its tensors are called.

    Attributes:
        library: which it comes from, `timm` or `torchvision`.
        arguments: of its constructor.
        code: Python lines that leave it in `model`, without a classifier.
        prefixes: beginning of our names -> beginning of the twin's; other names are the same in both.
    """

    library: str
    arguments: Mapping[str, Any]
    code: str
    prefixes: Mapping[str, str]

    def rename(self, name: str) -> str:
        """The twin's name of a tensor of ours."""
        for ours, theirs in self.prefixes.items():
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        return name
