"""The words of a command: at most one CONFIG, overrides `key=value`, and sweeps `key=a,b` over several values."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from fedbench.config.load import Tree, merge, nest
from fedbench.config.plain_yaml import parse_yaml
from fedbench.errors import UserError, shorten, shown

MAX_WORDS = 1_000  # of a command; a configuration has a tenth as many keys


@dataclass(frozen=True)
class Words:
    """What was asked for: a preset or file, what is set on top of it, and what takes each of several values."""

    file: str | None
    overrides: Tree
    sweeps: Mapping[str, Sequence[Any]]

    def single(self) -> Tree:
        """The overrides, where a sweep makes no sense: `UserError` if there is one."""
        for key, values in self.sweeps.items():
            several = shorten(",".join(map(str, values)))
            raise UserError(f"{shorten(key)}={several}: several values; allowed here: one (a list is [{several}])")
        return self.overrides


def read_words(words: Sequence[str]) -> Words:
    """Sort the words of a command line; values are YAML.

    Raises:
        UserError: for two CONFIGs, a key that is swept twice, a value that is no YAML, or too many words.
    """
    _check_number(words)
    files = [word for word in words if "=" not in word]
    if len(files) > 1:
        raise UserError(f"too many configurations: {shorten(', '.join(files))}; allowed: one CONFIG")
    values = [(word, *_key(word)) for word in words if "=" in word]
    several = [(key, _several(text)) for _, key, text in values]
    swept = [(key, found) for key, found in several if len(found) > 1]
    twice = [key for key, times in Counter(key for key, _ in swept).items() if times > 1]
    if twice:
        raise UserError(f"{shorten(min(twice))} is given several values twice; allowed: once")
    overrides = parse_overrides(
        word for (word, *_), (_, found) in zip(values, several, strict=True) if len(found) < 2
    )
    return Words(files[0] if files else None, overrides, dict(swept))


def parse_overrides(words: Iterable[str]) -> Tree:
    """`["ssl.name=byol", "seed=3"]` -> `{"ssl": {"name": "byol"}, "seed": 3}`; the order does not matter."""
    words = list(words)
    _check_number(words)
    pairs = (_key(word) for word in words)
    trees = (nest(key, parse_yaml(text, key)) for key, text in pairs)
    return reduce(lambda tree, one: merge(tree, one, drop_fields=False), trees, {})


def _check_number(words: Sequence[str]) -> None:
    if len(words) > MAX_WORDS:
        raise UserError(f"{len(words):,} words; allowed: {MAX_WORDS:,}, or a file of them: CONFIG")


def _key(word: str) -> tuple[str, str]:
    key, equals, text = word.partition("=")
    if not equals:
        raise UserError(f"{shown(word)} is not an override; allowed: key=value or section.key=value")
    return key, text


def _several(text: str) -> list[Any]:
    """The values of `a,b`; commas within brackets or quotation marks do not part."""
    try:
        values = parse_yaml(f"[{text}]", "")
    except UserError:  # no part of a list: one value
        return []
    return values if isinstance(values, list) else []
