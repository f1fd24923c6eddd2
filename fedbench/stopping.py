"""SIGTERM, which clusters send before they kill: the round under way comes to its end, if it does so in time.

A cell asks after each round, when its checkpoint is on the disk. Who is out of time, or gets a second SIGTERM,
loses the round under way and no other.
"""

import signal
from types import FrameType
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM
_elsewhere: Any = None  # set where the process that started this worker was asked to end
_asked = False


class StoppedError(BaseException):
    """This process was asked to end. No plugin's `except Exception` keeps it from that."""


def listen(grace: float) -> None:
    """From now on SIGTERM asks to end after the round, within `grace` seconds."""

    def ask(number: int, frame: FrameType | None) -> None:
        global _asked
        if _asked:
            raise StoppedError
        _asked = True
        signal.setitimer(signal.ITIMER_REAL, max(grace, 0.001))

    def out_of_time(number: int, frame: FrameType | None) -> None:
        raise StoppedError

    signal.signal(signal.SIGALRM, out_of_time)
    signal.signal(signal.SIGTERM, ask)


def listen_in_worker(asked: Any) -> None:
    """The same in a worker, which the process that started it asks by the event `asked`, and ends in time."""
    global _elsewhere
    _elsewhere = asked

    def note(number: int, frame: FrameType | None) -> None:
        global _asked
        _asked = True

    signal.signal(signal.SIGTERM, note)


def pass_on(asked: Any) -> None:
    """Let SIGTERM set `asked`, which workers look at, as well."""
    before = signal.getsignal(signal.SIGTERM)
    if not callable(before):  # nobody listens: as from a script that handles signals as it likes
        return

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        before(number, frame)

    signal.signal(signal.SIGTERM, ask)


def is_asked() -> bool:
    """Whether this process is to end at the next whole round."""
    return _asked or (_elsewhere is not None and bool(_elsewhere.is_set()))
