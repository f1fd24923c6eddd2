"""Plugins that want to end the process, and with it all other cells, are told that they may not."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class ProcessExitError(SystemExit):
    """A plugin wanted to end the process at once. No `Exception`, so that no plugin takes it for its own."""


@contextmanager
def no_sudden_exit() -> Iterator[None]:
    """`os._exit` raises in this thread of this process; elsewhere (a child, a watching thread) it is itself."""
    real, owner = os._exit, (os.getpid(), threading.get_ident())

    def refused(status: int) -> NoReturn:
        if (os.getpid(), threading.get_ident()) != owner:
            real(status)
        raise ProcessExitError(f"os._exit({status!r}) was called, which ends all cells without a word")

    os._exit = refused
    try:
        yield
    finally:
        os._exit = real


def blame(error: SystemExit) -> str:
    """What is said of it where no cell can be named."""
    what = str(error) if isinstance(error, ProcessExitError) else f"sys.exit({error.code!r}) was called"
    return f"a plugin: {what}; allowed: to raise an exception"
