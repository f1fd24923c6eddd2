"""Files of a run as an earlier version left them, or somebody else: changed, and without a seal."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedbench.tracking.run_directory import FILES, SEAL


def rewrite(run: Path, name: str, content: Mapping[str, Any]) -> None:
    """Put `content` into a file of a run, whose summary vouches for nothing any more."""
    (run / name).write_text(json.dumps(content))
    summary = json.loads((run / "summary.json").read_text())
    whole = {key: value for key, value in summary.items() if key not in (SEAL, FILES)}
    (run / "summary.json").write_text(json.dumps(whole))
