"""Whether this process can use the W&B server: found out once, waited for once, told once."""

import os
import socket
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from fedbench.masking import told

ANSWER_TIMEOUT_S = 3
REPORTING = "WANDB_ERROR_REPORTING"


class Server:
    """The W&B server as this process knows it; once it is lost, nobody here waits for it again."""

    def __init__(self) -> None:
        self._up: bool | None = None

    def is_up(self, folder: Path) -> bool:
        """Whether to go online; `folder` as in `lose`. The first call asks, for at most some seconds."""
        if self._up is None:
            reason = _hindrance()
            self._up = reason is None
            if reason is not None:
                self.lose(reason, folder)
        return self._up

    def lose(self, reason: str, folder: Path) -> None:
        """Stay offline from here on, and say how to upload what lies under `folder`/wandb and its neighbours."""
        self._up = False
        warn(
            f"W&B goes offline ({reason}); nothing is lost. To upload it later: wandb login, then "
            f"wandb sync --include-online {folder.parent}/*/wandb/*run-*"
        )


SERVER = Server()


@contextmanager
def unreported() -> Iterator[None]:
    """In here wandb starts its service such that it tells its makers nothing.

    By default it asks for their address and sends them figures of its own, offline too. There is no setting for
    that, only the environment.
    """
    before = os.environ.get(REPORTING)
    os.environ[REPORTING] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[REPORTING]
        else:
            os.environ[REPORTING] = before


def _hindrance() -> str | None:
    """Why there is no going online, None where nothing is in the way."""
    import wandb

    # The address first: without a network wandb.login waits longer, and talks.
    address = str(wandb.setup().settings.base_url)
    silence = _silence(address)
    if silence is not None:
        return f"{address} cannot be reached: {silence}"
    return None if wandb.login(prompt=False, verify=False) else "no API key"


def _silence(address: str) -> object:
    """Why nobody answers; None if somebody does. A refusal by HTTP or TLS is an answer: wandb can judge it."""
    try:
        urllib.request.urlopen(address, timeout=ANSWER_TIMEOUT_S).close()
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        return reason if isinstance(reason, ConnectionError | TimeoutError | socket.gaierror) else None
    return None


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"fedbench: {told(message)}", file=sys.stderr)
