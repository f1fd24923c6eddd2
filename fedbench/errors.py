"""The one error that a user can cause: it names the key, the value and what is allowed."""


class UserError(ValueError):
    """Bad input. The command line prints its text without a traceback and exits with 2."""
