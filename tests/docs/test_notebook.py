"""The notebook runs from its first cell to its last, and is committed without outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CELLS = json.loads((Path(__file__).parents[2] / "docs" / "notebook.ipynb").read_text())["cells"]


@pytest.mark.exhaustive  # the functions have their own tests
def test_every_cell_runs(tmp_path: Path) -> None:
    code = "\n\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code")
    environment = {**os.environ, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", code]  # no kernel: one that starts slowly would be no fault of the notebook's
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs").glob("*/summary.json"))) == 4
    assert "did you mean 'rounds'?" in done.stdout


def test_no_output_is_committed() -> None:
    assert len(CELLS) == 10
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in CELLS)
