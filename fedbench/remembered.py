"""What `profile` printed, kept under the hash of all that it depends on: a second call imports no torch."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import fedbench
from fedbench.config import Config
from fedbench.config.load import PLUGINS
from fedbench.files import cache_folder, user_path, write_atomically

PACKAGES = ("fedbench.methods", "fedbench.configs", "fedbench.published")
LIBRARIES = ("torch", "torchvision", "timm", "lightly", "lightning", "opacus")  # what its figures are made with


def remembered(configs: Sequence[Config], options: Sequence[Any], compute: Callable[[], str]) -> str:
    """The text of an earlier call with the same configurations, options, plugins and versions, else of `compute`.

    Not kept where a configuration names the user's files, whose sizes may be counted.
    """
    if any(config.data.path or config.data.partition.file for config in configs):
        return compute()
    file = cache_folder() / "profiles" / f"{_key(configs, options)}.txt"
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # not there yet, or damaged
        text = compute()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text.encode())
    except OSError:  # a folder that cannot be written to makes the next call slow, no more
        pass
    return text


def _key(configs: Sequence[Config], options: Sequence[Any]) -> str:
    facts: list[Any] = [config.model_dump(mode="json") for config in configs]
    facts += [*options, *(metadata.version(name) for name in LIBRARIES)]
    hashed = hashlib.sha256(json.dumps([*facts, code_digest()], sort_keys=True).encode())
    for path in sorted({path for config in configs for path in _plugin_files(config)}):
        hashed.update(path.read_bytes())
    return hashed.hexdigest()[:24]


@cache
def code_digest() -> str:
    """Of the code of fedbench and what it ships, wherever it is installed, as when this process first asked."""
    digests = sorted(hashlib.sha256(path.read_bytes()).digest() for path in _own_files())
    return hashlib.sha256(b"".join(digests)).hexdigest()[:24]


def _own_files() -> list[Path]:
    """The code of fedbench, wherever its parts are installed, and what it ships."""
    folders = [Path(fedbench.__file__).parent, *(Path(str(resources.files(name))) for name in PACKAGES)]
    return [path for folder in folders for kind in ("*.py", "*.yaml") for path in folder.rglob(kind)]


def _plugin_files(config: Config) -> list[Path]:
    names = [
        str(getattr(config, key)["name"] if key == "strategy" else getattr(config, key).name) for key in PLUGINS
    ]
    paths = [user_path(name.partition(":")[0]) for name in names]
    return [path for path in paths if path.suffix == ".py" and path.is_file()]
