"""Tensors and facts in one safetensors file that vouches for both: safetensors sees damage to its header only."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = "2"


class DamagedError(ValueError):
    """A file is not what was written."""


class EarlierError(DamagedError):
    """A file is of an earlier version, which vouched for it otherwise."""


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, as hex; their order does not matter."""
    digest = sha256()
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def pack(facts: Mapping[str, Any], tensors: Mapping[str, Tensor], digest: str | None = None) -> bytes:
    """Content of a file; `digest`: of the tensors, where it is known."""
    text = json.dumps(facts)
    vouched = _whole(text, digest or tensor_digest(tensors))
    return save(dict(tensors), {"facts": text, "sha256": vouched, "format": FORMAT})


def unpack(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and tensors.

    Raises:
        DamagedError: they are not those that were packed; OSError: there is no file that can be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text, digest = (file.metadata()[key] for key in ("facts", "sha256"))
            if file.metadata().get("format") != FORMAT:
                raise EarlierError(f"{path} is of another version of fedbench, whose files this one does not read")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        facts = json.loads(text)
    except DamagedError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read ({error})") from error
    if _whole(text, tensor_digest(tensors)) != digest or not isinstance(facts, dict):
        raise DamagedError(f"{path} cannot be read (its values are not those that were written)")
    return facts, tensors


def _whole(facts: str, tensors: str) -> str:
    return sha256(f"{facts}{tensors}".encode()).hexdigest()
