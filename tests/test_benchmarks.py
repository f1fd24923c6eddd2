"""The scripts of `benchmarks/` fit the code: nothing else runs them between two measurements."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "benchmarks"
ELSEWHERE = {"flower.py", "pfl_peer.py", "run.py", "two_nodes.py"}  # import what `peers/requirements*.txt` install
SCRIPTS = sorted(path for path in ROOT.rglob("*.py") if path.name not in ELSEWHERE)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_finds_what_it_imports(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (ROOT / "speed", script.parent):
        monkeypatch.syspath_prepend(str(folder))
    runpy.run_path(str(script), run_name="imported")
