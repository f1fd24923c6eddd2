"""From YAML files and `key=value` words to a `Config`; every error names its key, value and what is allowed."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeGuard, cast, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fedbench.config.plain_yaml import MAX_DEPTH, MAX_TEXT
from fedbench.config.plain_yaml import parse_yaml as parse_yaml
from fedbench.config.plain_yaml import read_yaml as read_yaml
from fedbench.config.schema import (
    ENCODER_KEYS,
    OF_SOME_ENCODERS,
    WITH_ALL_KEYS,
    Config,
    EvaluationConfig,
    SSLConfig,
)
from fedbench.errors import UserError, listed, shorten, shown, suggest
from fedbench.files import config_names, user_path
from fedbench.plugins import Kind, is_known, unknown

Tree = dict[str, Any]
PLUGINS: dict[str, Kind] = {
    "strategy": "strategies",
    "ssl": "ssl",
    "encoder": "encoders",
    "data": "datasets",
}  # section -> kind
UNTRAINED = "untrained"  # what a run of no rounds is called


def resolve_file(name_or_path: str, kind: str) -> Path:
    """A shipped name, or a path to a YAML file of the user's."""
    if name_or_path in config_names(kind):
        return Path(str(resources.files("fedbench.configs") / kind / f"{name_or_path}.yaml"))
    path = user_path(name_or_path)
    with suppress(OSError, ValueError):  # a name that is too long for the system, or that no file can have
        if path.is_file():
            return path
    allowed = ", ".join(config_names(kind))
    raise UserError(f"{kind}: {shown(name_or_path)} is neither a file nor one of: {allowed}")


def key_parts(key: str) -> list[str]:
    """`ssl.name` -> `["ssl", "name"]`; the path of a plugin in it, which has dots of its own, is one part.

    Raises:
        UserError: a part is empty, or there are too many.
    """
    if len(key) > MAX_TEXT:
        raise UserError(f"{shown(key)} is no key, it has {len(key):,} characters; allowed: {MAX_TEXT:,}")
    parts = re.findall(r"(?:^|\.)((?:~|\.{1,2})?/.*?\.py(?::\w+)?(?=\.|$)|[^.]+)", key)
    if not key or not key.isprintable() or ".".join(parts) != key:
        raise UserError(f"{shown(key)} is no key; allowed: names with a dot between them, such as section.key")
    if len(parts) > MAX_DEPTH:
        raise UserError(f"{shown(key)} has {len(parts):,} parts; allowed: {MAX_DEPTH}")
    return parts


def nest(key: str, value: Any) -> Tree:
    """`("ssl.name", "byol")` -> `{"ssl": {"name": "byol"}}`."""
    tree: Any = value
    for part in reversed(key_parts(key)):
        tree = {part: tree}
    return cast(Tree, tree)


def merge(base: Mapping[str, Any], over: Mapping[str, Any], drop_fields: bool = True) -> Tree:
    """`over` on top of `base`, mapping by mapping; a plain name stands for `{name: ...}`.

    With `drop_fields`, another `strategy`, `encoder` or `ssl` drops the fields that were the old plugin's own.
    """
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(value, str) and isinstance(old, Mapping):
            value = {"name": value}
        if not isinstance(value, Mapping):
            result[key] = value
            continue
        old = {"name": old} if isinstance(old, str) else old if isinstance(old, Mapping) else {}
        if drop_fields and "name" in value and value["name"] != old.get("name"):
            old = {
                name: one for name, one in old.items() if not _is_own(key, name, old.get("name"), value["name"])
            }
        result[key] = merge(old, value, drop_fields)
    return result


def _is_own(section: str, key: str, old: str | None, new: str) -> bool:
    """Whether a key of a section is the plugin `old`'s, and means nothing to another one called `new`."""
    if section == "encoder":
        both = new in WITH_ALL_KEYS and (old is None or old in WITH_ALL_KEYS)
        return key == "init" or not (key in ENCODER_KEYS or (both and key in OF_SOME_ENCODERS))
    if section == "ssl":
        return key not in SSLConfig.model_fields
    return section == "strategy"


def load_config(*trees: Mapping[str, Any]) -> Config:
    """Validate the merged trees; all errors are reported at once."""
    merged: Tree = {}
    for tree in trees:
        merged = merge(merged, tree)
    merged = _expand_preset(merged)
    lines = _unknown_plugins(merged)
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        lines = [*explanations(Config, error), *lines]
    if lines:
        raise UserError("\n".join(["configuration is not valid:", *lines]))
    return config


def _unknown_plugins(tree: Tree) -> list[str]:
    """A line for each plugin that is called by a name which none has; nothing is imported to find out."""
    lines = []
    for key, kind in PLUGINS.items():
        section = tree.get(key)
        name = section.get("name") if isinstance(section, Mapping) else section
        if isinstance(name, str) and not is_known(kind, name):
            lines.append(f"  {key}.name: {unknown(kind, shorten(name))}")
    return [*lines, *_unknown_transforms(tree.get("encoder"))]


def _unknown_transforms(encoder: object) -> list[str]:
    given = encoder.get("transforms") if isinstance(encoder, Mapping) else None
    given = given if isinstance(given, list | tuple) else [given]
    names = [one.get("name") if isinstance(one, Mapping) else one for one in given]
    return [
        f"  encoder.transforms: {unknown('transforms', shorten(name))}"
        for name in names
        if isinstance(name, str) and not is_known("transforms", name)
    ]


def _expand_preset(tree: Tree) -> Tree:
    """`strategy: lw_fedssl@v3` -> the fields of that file, with what the tree sets on top, and its name kept."""
    strategy = tree.get("strategy")
    chosen = {"name": strategy} if isinstance(strategy, str) else strategy
    if isinstance(chosen, Mapping) and "preset" in chosen and "name" not in chosen:
        chosen = {"name": chosen["preset"], **{key: value for key, value in chosen.items() if key != "preset"}}
        tree = {**tree, "strategy": chosen}
    if isinstance(chosen, Mapping) and "name" not in chosen:  # `strategy.salf=true` alone: of the default strategy
        tree = {**tree, "strategy": {**Config().strategy, **chosen}}
    if not isinstance(chosen, Mapping) or chosen.get("name") not in config_names("strategies"):
        return tree
    preset = _preset(chosen["name"])
    own = {key: value for key, value in chosen.items() if key != "name"}
    return {**tree, "strategy": merge({**preset, "preset": chosen["name"]}, own)}


@cache
def _preset(name: str) -> Tree:
    """The content of a shipped file, which nobody changes: a grid has thousands of cells."""
    return read_yaml(resolve_file(name, "strategies"))


def flat(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    """`{"a": {"b": 1}, "c": 2}` -> `{"a.b": 1, "c": 2}`."""
    pairs: Tree = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and value
        pairs |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return pairs


def explanations(model: type[BaseModel], error: ValidationError) -> list[str]:
    """A line for each of the first errors, and how many there are besides."""
    return listed((explain(model, details) for details in error.errors()), error.error_count())


def explain(model: type[BaseModel], details: ErrorDetails) -> str:
    """One line for one error: the key, the value, what is allowed."""
    location = [str(part) for part in details["loc"]]
    key = shorten(".".join(location)) or "configuration"
    if details["type"] == "extra_forbidden":
        return f"  {key}: unknown key; " + suggest(location[-1], fields_at(model, location[:-1]))
    message = shorten(details["msg"].removeprefix("Value error, "), 300)
    value = details["input"]
    got = "" if isinstance(value, Mapping | BaseModel) else f" (got {shown(value)})"
    return f"  {key}: {message}{got}"


def fields_at(model: type[BaseModel], location: Iterable[str]) -> list[str]:
    """Names of the fields of the section at `location`."""
    for part in location:
        annotation = model.model_fields[part].annotation
        sections = [option for option in (annotation, *get_args(annotation)) if _is_model(option)]
        if not sections:
            return []
        model = sections[0]
    return list(model.model_fields)


def _is_model(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def config_hash(config: Config) -> str:
    """Twelve hexadecimal digits over what can change a result; data and device are named by other means.

    A section that is younger than the hash counts only where it says something: older runs keep theirs.
    """
    without: dict[str, Any] = {
        "tracking": True,
        "tuning": True,
        "accelerator": True,
        "engine": True,
        "workers": True,
        "federation": {"timeout": True},
        "encoder": {"init": True},
        "data": {"path": True, "skip_broken": True, "partition": {"file": True}},
        "evaluation": {"data": {"path": True, "skip_broken": True}},
    }
    content = config.model_dump(mode="json", exclude=without)
    if config.evaluation == EvaluationConfig():
        del content["evaluation"]
    return digest(content)


def digest(content: Any) -> str:
    """Twelve hexadecimal digits over a tree of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
