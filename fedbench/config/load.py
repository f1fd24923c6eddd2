"""From YAML files and `key=value` words to a `Config`; every error names its key, value and what is allowed."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeGuard, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fedbench.config.schema import Config, EvaluationConfig
from fedbench.errors import UserError, suggest
from fedbench.files import config_names, user_path
from fedbench.plugins import Kind, is_known, unknown

Tree = dict[str, Any]
PLUGINS: dict[str, Kind] = {"strategy": "strategies", "ssl": "ssl", "data": "datasets"}  # section -> kind
UNTRAINED = "untrained"  # what a run of no rounds is called


def resolve_file(name_or_path: str, kind: str) -> Path:
    """A shipped name, or a path to a YAML file of the user's."""
    if name_or_path in config_names(kind):
        return Path(str(resources.files("fedbench.configs") / kind / f"{name_or_path}.yaml"))
    path = user_path(name_or_path)
    if path.is_file():
        return path
    allowed = ", ".join(config_names(kind))
    raise UserError(f"{kind}: {name_or_path!r} is neither a file nor one of: {allowed}")


class _Loader(yaml.SafeLoader):
    """Safe, and without what hides a mistake: a key given twice, or an alias."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(
                None, None, "aliases are not allowed", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {twice[0]!r} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Tree:
    """A YAML file whose top level is a mapping (an empty file is an empty one)."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise UserError(f"{path}: not a valid YAML file: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: the top level is a {type(tree).__name__}; allowed: a mapping of keys")
    return tree


def parse_yaml(text: str, key: str) -> Any:
    """The value of `key` on a command line."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{key}: {text!r} is not valid YAML: {error}") from error


def key_parts(key: str) -> list[str]:
    """`ssl.name` -> `["ssl", "name"]`; the path of a plugin in it, which has dots of its own, is one part.

    Raises:
        UserError: a part is empty.
    """
    parts = re.findall(r"(?:^|\.)((?:~|\.{1,2})?/.*?\.py(?::\w+)?(?=\.|$)|[^.]+)", key)
    if not key or ".".join(parts) != key:
        raise UserError(f"{key!r} is no key; allowed: names with a dot between them, such as section.key")
    return parts


def nest(key: str, value: Any) -> Tree:
    """`("ssl.name", "byol")` -> `{"ssl": {"name": "byol"}}`."""
    tree: Any = value
    for part in reversed(key_parts(key)):
        tree = {part: tree}
    return cast(Tree, tree)


def merge(base: Mapping[str, Any], over: Mapping[str, Any], drop_fields: bool = True) -> Tree:
    """`over` on top of `base`, mapping by mapping; a plain name stands for `{name: ...}`.

    With `drop_fields`, another `strategy` drops the fields of the old one, which were that plugin's own.
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
        other_plugin = key == "strategy" and "name" in value and value["name"] != old.get("name")
        result[key] = merge({} if other_plugin and drop_fields else old, value, drop_fields)
    return result


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
        lines = [*(explain(Config, details) for details in error.errors()), *lines]
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
            lines.append(f"  {key}.name: {unknown(kind, name)}")
    return lines


def _expand_preset(tree: Tree) -> Tree:
    """`strategy: lw_fedssl@v3` -> the fields of that file, with what the tree sets on top, and its name kept."""
    strategy = tree.get("strategy")
    chosen = {"name": strategy} if isinstance(strategy, str) else strategy
    if isinstance(chosen, Mapping) and "name" not in chosen:  # `strategy.salf=true` alone: of the default strategy
        tree = {**tree, "strategy": {**Config().strategy, **chosen}}
    if not isinstance(chosen, Mapping) or chosen.get("name") not in config_names("strategies"):
        return tree
    preset = read_yaml(resolve_file(chosen["name"], "strategies"))
    own = {key: value for key, value in chosen.items() if key != "name"}
    return {**tree, "strategy": merge({**preset, "preset": chosen["name"]}, own)}


def flat(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    """`{"a": {"b": 1}, "c": 2}` -> `{"a.b": 1, "c": 2}`."""
    pairs: Tree = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and value
        pairs |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return pairs


def explain(model: type[BaseModel], details: ErrorDetails) -> str:
    """One line for one error: the key, the value, what is allowed."""
    location = [str(part) for part in details["loc"]]
    key = ".".join(location) or "configuration"
    if details["type"] == "extra_forbidden":
        return f"  {key}: unknown key; " + suggest(location[-1], fields_at(model, location[:-1]))
    message = details["msg"].removeprefix("Value error, ")
    value = details["input"]
    shown = "" if isinstance(value, Mapping | BaseModel) else f" (got {value!r})"
    return f"  {key}: {message}{shown}"


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
