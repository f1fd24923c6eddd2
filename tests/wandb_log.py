"""W&B's offline files, read back."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HEADER_BYTES = 7  # of an empty log


def log_file(folder: Path) -> Path:
    """The log of the only run under `folder`, once it is complete: wandb's service writes it, not this process."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 10
    while file.stat().st_size <= HEADER_BYTES and time.monotonic() < deadline:
        time.sleep(0.01)
    return file


def recorded(folder: Path) -> dict[str, Any]:
    """The only run under `folder`, as W&B's own reader sees it."""
    content: dict[str, Any] = json.loads(_inspect(folder, "--summary"))
    return content


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The records of a kind (`run`, `history`, ...) in the log of the only run under `folder`."""
    found = [json.loads(line) for line in _inspect(folder).splitlines()]
    return [record for record in found if record["type"] == kind]


def _inspect(folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *options, "--json", str(log_file(folder))]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout
