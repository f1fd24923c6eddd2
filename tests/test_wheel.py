"""The built wheel runs the quick start from another directory, and brings no stray top-level package."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHORT = ["federation.rounds=4", "federation.local_epochs=1", "data.num_train=60", "probe.epochs=2"]


def run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files that git knows, so that leftovers of another build cannot help."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    files = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    for name in filter(lambda name: (ROOT / name).is_file(), files):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, cwd=source)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_one_top_level_package_and_every_source_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"fedbench"}
    for folder, prefix in (("fedbench", ""), ("methods", "fedbench/"), ("configs", "fedbench/")):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".yaml", ".html"}:
                assert f"{prefix}{path.relative_to(ROOT).as_posix()}" in names


@pytest.mark.exhaustive
def test_the_wheel_runs_the_quick_start_from_another_directory(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own that borrows the installed libraries, but not the source checkout."""
    environment = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    site = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=tmp_path).strip())
    libraries = Path(pytest.__file__).parent.parent
    (site / "borrowed.pth").write_text(f"{libraries}\n")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--force-reinstall",
        "--no-index", wheel, cwd=tmp_path)  # fmt: skip
    where = run(python, "-c", "import fedbench.methods.ssl.byol as m; print(m.__file__)", cwd=tmp_path)
    assert Path(where).is_relative_to(site)
    run(python, "-m", "fedbench", "run", "--grid", *SHORT, "--out", "results", cwd=tmp_path)
    rows = json.loads((tmp_path / "results" / "leaderboard.json").read_text())
    assert sorted(row["strategy"] for row in rows) == [
        "fedssl",
        "lw_fedssl@v3(calibration.epochs=3, calibration.base_lr=0.004432)",
        "lw_fedssl@v4",
        "prog_fedssl",
    ]
