"""Budgets on the command line: `memory=2GiB upload=500MB flops=1e15`."""

import re
from collections.abc import Iterable
from math import isfinite

from fedbench.errors import UserError, suggest

RESOURCES = ("memory", "upload", "download", "flops", "total_flops")  # total: of all clients and the server
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def parse_budgets(words: Iterable[str]) -> dict[str, float]:
    """`["memory=2GiB", "flops=1e15"]` -> bytes and FLOPs.

    Raises:
        UserError: naming the word and what is allowed.
    """
    budgets = {}
    for word in words:
        name, _, text = word.partition("=")
        if name not in RESOURCES:
            raise UserError(f"--budget {word}: unknown resource {name!r}; {suggest(name, RESOURCES)}")
        budgets[name] = _amount(word, text)
    return budgets


def _amount(word: str, text: str) -> float:
    is_flops = word.partition("=")[0].endswith("flops")
    found = re.fullmatch(r"(\d+\.?\d*(?:[eE]\d+)?)\s*([kMGTPE]|[KMGT]i)?(B|FLOPs?)?", text)
    if not found or (found[3] and (found[3] == "B") == is_flops):
        example = "a number with k, M, G, T, P, E" if is_flops else "bytes as 500MB, 2GiB or a number"
        raise UserError(f"--budget {word}: {text!r} is no amount; allowed: {example}")
    amount = float(found[1]) * (UNITS | BINARY)[found[2] or ""]
    if not isfinite(amount):
        raise UserError(f"--budget {word}: {text!r} is not finite")
    return amount
