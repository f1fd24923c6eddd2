"""Errors whose text is for the user: it names the key, the value and what is allowed."""

import difflib
from collections.abc import Iterable
from itertools import islice

SHOWN = 120  # characters of a value in an error
LISTED = 20  # complaints that are told one by one


class UserError(ValueError):
    """Bad input. The command line prints its text without a traceback and exits with 2."""


class AccountingError(UserError):
    """Two counts of the same bytes differ: a strategy or the harness sends what it did not declare."""


def suggest(name: str, allowed: Iterable[str]) -> str:
    """`did you mean` where something is close, and the list of what is allowed."""
    names = list(allowed)
    name = shorten(name)  # the search takes as long as its square
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed: {', '.join(names) or 'none'}"


def shorten(text: str, length: int = SHOWN) -> str:
    """The text, or where it is longer than `length` its beginning and its end."""
    if len(text) <= length:
        return text
    return f"{text[: length - length // 3]} ... {text[-(length // 3) :]}"


def shown(value: object) -> str:
    """`repr` of any value for an error: short, and of a number that Python does not print its kind."""
    try:
        return shorten(repr(value))
    except (ValueError, RecursionError):  # an integer of 4,300 digits; a list of lists of lists
        return f"a {type(value).__name__} too long to print"


def listed(lines: Iterable[str], total: int) -> list[str]:
    """The first of `total` complaints, of which no more are computed, and how many there are besides."""
    first = list(islice(lines, LISTED))
    return [*first, f"  ... and {total - len(first):,} more"] if total > len(first) else first


def is_out_of_memory(error: Exception) -> bool:
    """Torch has an error of its own on a GPU, and none on a CPU: there it is known by its words."""
    words = ("can't allocate memory", "Cannot allocate memory", "out of memory", "not enough memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(one in str(error) for one in words)
    )


def memory_words(error: BaseException) -> str:
    """That memory ran out, and what is known of it, in a line."""
    where = " ".join(str(error).split()) or type(error).__name__
    return f"this needs more memory than there is: {shorten(where, 300)}"
