"""Files of a run as an earlier version left them, or somebody else: changed, and without a seal."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedbench.tracking.noted import FORMAT
from fedbench.tracking.run_directory import FILES, SEAL


def rewrite(run: Path, name: str, content: Mapping[str, Any]) -> None:
    """Put `content` into a file of a run, which is of the first format then: its summary vouches for nothing."""
    (run / name).write_text(json.dumps(content))
    summary, manifest = (json.loads((run / file).read_text()) for file in ("summary.json", "manifest.json"))
    whole = {key: value for key, value in summary.items() if key not in (SEAL, FILES)}
    (run / "summary.json").write_text(json.dumps(whole))
    if manifest.get("format") == FORMAT:
        (run / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
