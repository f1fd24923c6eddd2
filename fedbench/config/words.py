"""The words of a command: at most one CONFIG, overrides `key=value`, and sweeps `key=a,b` over several values."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from fedbench.config.load import Tree, merge, nest, parse_yaml
from fedbench.errors import UserError


@dataclass(frozen=True)
class Words:
    """What was asked for: a preset or file, what is set on top of it, and what takes each of several values."""

    file: str | None
    overrides: Tree
    sweeps: Mapping[str, Sequence[Any]]

    def single(self) -> Tree:
        """The overrides, where a sweep makes no sense: `UserError` if there is one."""
        for key, values in self.sweeps.items():
            several = ",".join(map(str, values))
            raise UserError(f"{key}={several}: several values; allowed here: one (a list is [{several}])")
        return self.overrides


def read_words(words: Sequence[str]) -> Words:
    """Sort the words of a command line; values are YAML.

    Raises:
        UserError: for two CONFIGs, a key that is swept twice, a value that is no YAML.
    """
    files = [word for word in words if "=" not in word]
    if len(files) > 1:
        raise UserError(f"too many configurations: {', '.join(files)}; allowed: one CONFIG")
    values = [(*_key(word), word) for word in words if "=" in word]
    swept = [(key, several) for key, text, _ in values if len(several := _several(text)) > 1]
    twice = {key for key, _ in swept if sum(key == other for other, _ in swept) > 1}
    if twice:
        raise UserError(f"{min(twice)} is given several values twice; allowed: once")
    overrides = parse_overrides(word for key, text, word in values if len(_several(text)) < 2)
    return Words(files[0] if files else None, overrides, dict(swept))


def parse_overrides(words: Iterable[str]) -> Tree:
    """`["ssl.name=byol", "seed=3"]` -> `{"ssl": {"name": "byol"}, "seed": 3}`; the order does not matter."""
    pairs = (_key(word) for word in words)
    trees = (nest(key, parse_yaml(text, key)) for key, text in pairs)
    return reduce(lambda tree, one: merge(tree, one, drop_fields=False), trees, {})


def _key(word: str) -> tuple[str, str]:
    key, equals, text = word.partition("=")
    if not equals:
        raise UserError(f"{word!r} is not an override; allowed: key=value or section.key=value")
    return key, text


def _several(text: str) -> list[Any]:
    """The values of `a,b`; commas within brackets or quotation marks do not part."""
    try:
        values = parse_yaml(f"[{text}]", "")
    except UserError:  # no part of a list: one value
        return []
    return values if isinstance(values, list) else []
