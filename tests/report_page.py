"""Rounds for hand-made runs, and the page that the report makes of them, also as a browser sees it."""

import json
import re
import shutil
import subprocess
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedbench.tracking.run_directory import RunDirectory

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=9000")


def add_rounds(run: RunDirectory, *losses: float, accuracy: float | None = None, every: int = 1) -> None:
    """A line for each loss; the accuracy is measured in every so manyeth round."""
    for number, loss in enumerate(losses):
        measured = accuracy is not None and (number + 1) % every == 0
        costs = {"all_clients/download_bytes": 6_000_000, "all_clients/upload_bytes": 3_000_000}
        costs["all_clients/flops"] = 15_000_000_000
        probe = {"probe/linear_top1": accuracy} if measured else {}
        run.append_round({"round": number, "stage": 1, "train/loss": loss} | costs | probe)


def page_of(out: Path) -> str:
    """The page's source."""
    return (out / "report.html").read_text(encoding="utf-8")


def without_bokeh(page: str) -> str:
    """The page without the library, whose source text is not ours to judge."""
    return re.sub("<script>.*?</script>", "", page, flags=re.S)


def browse(page: Path, profile: Path) -> str:
    """What Chromium says while it shows the page."""
    command: list[Any] = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", f"--screenshot={profile}.png", page]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stderr


def play(out: Path, script: str, *flags: str) -> Any:
    """What `script`, the body of a function, returns in a browser that has shown the page."""
    told = f"document.title = JSON.stringify((() => {{ {script} }})())"
    later = f"setTimeout(() => {{ {told} }}, 3000)"
    digest = b64encode(sha256(later.encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}' "  # beside the page's own
    page, source = out / "played.html", page_of(out).replace("script-src ", allowed, 1)
    page.write_text(source.replace("</body>", f"<script>{later}</script></body>"), encoding="utf-8")
    command: list[Any] = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={out}/profile", "--dump-dom", page]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    title = re.search("<title>(.*?)</title>", shown, re.S)
    assert title is not None
    return json.loads(title[1])
