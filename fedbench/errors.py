"""Errors whose text is for the user: it names the key, the value and what is allowed."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The command line prints its text without a traceback and exits with 2."""


class AccountingError(UserError):
    """Two counts of the same bytes differ: a strategy or the harness sends what it did not declare."""


def suggest(name: str, allowed: Iterable[str]) -> str:
    """`did you mean` where something is close, and the list of what is allowed."""
    names = list(allowed)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed: {', '.join(names) or 'none'}"
