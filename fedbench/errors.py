"""Errors whose text is for the user: it names the key, the value and what is allowed."""


class UserError(ValueError):
    """Bad input. The command line prints its text without a traceback and exits with 2."""


class AccountingError(UserError):
    """Two counts of the same bytes differ: a strategy or the harness sends what it did not declare."""
