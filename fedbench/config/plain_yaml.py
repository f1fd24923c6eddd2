"""YAML of plain values, read in bounded time and memory: no objects, no dates, no aliases, no key twice.

Whatever PyYAML raises on the way is an error that names the file or the key, in one line.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from fedbench.errors import UserError, shorten, shown

MAX_BYTES = 500_000  # of a file
MAX_VALUES = 20_000  # in one: PyYAML reads as many in half a second
MAX_DEPTH = 50  # mappings and lists within each other, and parts of a dotted key
MAX_TEXT = 4_096  # characters of a text, as of the longest path
MAX_DIGITS = 100  # characters of a number
YAML_TAG = "tag:yaml.org,2002:"
DATE = f"{YAML_TAG}timestamp"  # no key takes one, so that it is a text
NUMBERS = {f"{YAML_TAG}int", f"{YAML_TAG}float"}
PLAIN = {f"{YAML_TAG}{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}


class _Loader(yaml.SafeLoader):
    """Safe, and without what hides a mistake or takes for ever."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (mypy: the base class says no ClassVar)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != DATE]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012
        tag: build for tag, build in yaml.SafeLoader.yaml_constructors.items() if tag in PLAIN
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise _refusal("aliases are not allowed", mark)
        self.depth, self.values = self.depth + 1, self.values + 1
        if self.depth > MAX_DEPTH:
            raise _refusal(f"nested deeper than allowed: {MAX_DEPTH}", mark)
        if self.values > MAX_VALUES:
            raise _refusal(f"more values than allowed: {MAX_VALUES:,}", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = node.tag.removeprefix(YAML_TAG)
        if node.tag not in self.yaml_constructors:
            raise _refusal(f"a value of the kind {shown(kind)}; allowed: plain values", node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            _check_text(node)
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, MemoryError):
            raise
        except Exception as error:  # PyYAML's constructors raise whatever comes of their arithmetic
            raise _refusal(f"{shown(node.value)} is no {kind}", node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):  # else the constructor says that it is none
            keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            key, times = next(iter(keys.most_common(1)), ("", 0))
            if times > 1:
                raise _refusal(f"key {shown(key)} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _check_text(node: yaml.ScalarNode) -> None:
    """Before a number is computed, or a path reaches the system. ConstructorError: too long, or of odd letters."""
    allowed = MAX_DIGITS if node.tag in NUMBERS else MAX_TEXT
    if len(node.value) > allowed:
        long = f"{shown(node.value)} has {len(node.value):,} characters"
        raise _refusal(f"{long}; allowed: {allowed:,}", node.start_mark)
    if re.search("[\0\ud800-\udfff]", node.value):  # which no path may have, and no UTF-8 file
        raise _refusal(f"{shown(node.value)} has a character of code 0, or half of one", node.start_mark)


def _refusal(problem: str, mark: yaml.Mark) -> ConstructorError:
    return ConstructorError(None, None, problem, mark)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping (an empty file is an empty one).

    Raises:
        UserError: naming the file, and the line where there is one.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"{path}: larger than allowed: {MAX_BYTES:,} bytes")
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a valid YAML file: {error}") from error
    tree = _parsed(text, f"{path}: not a valid YAML file")
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: the top level is a {type(tree).__name__}; allowed: a mapping of keys")
    return tree


def parse_yaml(text: str, key: str) -> Any:
    """The value of `key` on a command line. UserError: it is no YAML."""
    return _parsed(text, f"{shorten(key)}: {shown(text)} is not valid YAML")


def _parsed(text: str, complaint: str) -> Any:
    """UserError: `complaint`, and why."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except MemoryError:
        raise
    except Exception as error:  # see `construct_object`
        raise UserError(f"{complaint}: {_why(error)}") from error


def _why(error: Exception) -> str:
    """In one line."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return shorten(" ".join(str(error).split()) or type(error).__name__)
    words = ", ".join(filter(None, (getattr(error, "context", None), getattr(error, "problem", None))))
    return f"{shorten(words, 300)} (line {mark.line + 1}, column {mark.column + 1})"
