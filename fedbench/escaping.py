"""Words that others wrote (in the files of a run, in the name of a folder) on their way to a reader.

Each kind of output has one function here. A page needs none besides `printable`: its template and Bokeh escape.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

HIDDEN = {"Cc", "Cs", "Zl", "Zp"}  # Unicode's control characters, halves of characters, separators of lines
# What turns the direction of a text.
TURNS = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
FORMULA = tuple("=+-@＝＋－＠")  # noqa: RUF001  (what makes a spreadsheet take a cell for a formula, by OWASP)
# Wrapped, any word may begin a line: # a head, > a quotation, - a list, === a head above it, ~~~ code below it.
IN_MARKDOWN = re.compile(r"[\\`*#>]|\](?=[(\[:])|<|&(?=#?\w+;)|(?<!\S)[-+=~](?=[-+=~]*(?!\S))")
ENTITIES = {"<": "&lt;", "&": "&amp;"}  # not every reader of Markdown knows a backslash before these


def printable(text: str) -> str:
    """On one line, with nothing that a terminal obeys: `\\x1b` in letters for an escape."""
    return "".join(_visible(letter) for letter in " ".join(re.split("[\r\n\t]+", text)))


def _visible(letter: str) -> str:
    hidden = letter in TURNS or unicodedata.category(letter) in HIDDEN
    return letter.encode("unicode_escape").decode() if hidden else letter


def printable_lines(text: str) -> str:
    """The same of a text of several lines."""
    return "\n".join(map(printable, text.split("\n")))


def printable_tree(value: Any) -> Any:
    """The same of all words in a tree of mappings and lists, for JSON."""
    if isinstance(value, Mapping):
        return {printable_tree(key): printable_tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [printable_tree(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def in_markdown(text: str) -> str:
    """Words that stay words in Markdown: no HTML, link, picture or code. The bars are for the table to escape."""
    return IN_MARKDOWN.sub(lambda found: ENTITIES.get(found[0], f"\\{found[0]}"), printable(text))


def in_sheet(text: str) -> str:
    """Words that stay words in a spreadsheet: behind a `'` where they would begin a formula; not so figures."""
    text = printable(text)
    return f"'{text}" if text.lstrip().startswith(FORMULA) and not _is_figures(text) else text


def _is_figures(text: str) -> bool:
    """Whether it is a number, or several with spaces between."""
    try:
        return bool([float(word) for word in text.split()])
    except ValueError:
        return False
