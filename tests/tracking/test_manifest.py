import getpass
import json
import os
import platform
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path

import pytest
import torch

import fedbench
from fedbench.config import load_config
from fedbench.tracking.manifest import git_state, machine, manifest


def test_the_manifest_names_configuration_code_and_machine() -> None:
    config = load_config({"seed": 7, "accelerator": "cpu"})
    content = json.loads(json.dumps(manifest(config, "d1", {"ssl": "s1"}, "cpu", "c1", "cell")))
    assert (content["cell_name"], content["data_hash"]) == ("cell", "d1")
    assert content["config"]["seed"] == 7
    assert (content["cell_hash"], content["sources"], content["device"]) == ("c1", {"ssl": "s1"}, "cpu")
    assert content["fedbench"] == fedbench.__version__
    assert content["libraries"]["torch"] == metadata.version("torch")
    assert content["python"] == ".".join(map(str, sys.version_info[:3]))
    assert content["torch_threads"] == torch.get_num_threads()
    assert content["logical_cores"] == os.cpu_count()
    assert content["accelerator"] is None
    assert content["processor"]
    assert datetime.fromisoformat(content["started"]).utcoffset() is not None


@pytest.mark.parametrize("folder", ["/home/somebody/secret", "~/somebody/secret"])
def test_the_manifest_shows_no_path_from_the_root_or_home_no_host_and_no_wandb_account(folder: str) -> None:
    keys = {
        "strategy": f"{folder}/mine.py",
        "data": {"name": "npz", "path": f"{folder}/cells.npz"},
        "tracking": {"entity": "somebody"},
    }
    content = manifest(load_config(keys), "d1", {}, "cpu", "c1", "cell")
    text = json.dumps(content)
    assert content["config"]["data"]["path"] == "cells.npz"
    assert content["config"]["strategy"] == {"name": "mine.py"}
    for private in ("somebody", "secret", str(Path.home()), str(Path.cwd())):
        assert private not in text
    words = set(text.replace('"', " ").replace(",", " ").split())
    assert not words & {platform.node(), getpass.getuser()}


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    source = tmp_path / "fedbench" / "code.py"
    source.parent.mkdir()
    source.write_text("a = 1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


def test_a_checkout_is_named_by_its_commit_and_clean_until_a_source_changes(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "notes.txt").write_text("decides no result")
    assert git_state(checkout) == {"commit": commit, "dirty": False}
    (checkout / "fedbench" / "new.py").write_text("b = 2\n")
    assert git_state(checkout) == {"commit": commit, "dirty": True}


def test_code_installed_inside_somebody_elses_repository_has_no_commit(checkout: Path) -> None:
    assert git_state(checkout / "fedbench") == {"commit": None, "dirty": None}


def test_a_git_hook_of_another_repository_does_not_lend_its_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(checkout / "elsewhere"))
    assert git_state(checkout)["commit"] is not None


def test_without_git_the_commit_is_null(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_state(checkout) == {"commit": None, "dirty": None}


def test_no_tracking_module_imports_torch_wandb_or_matplotlib_by_being_imported() -> None:
    modules = ("tracking.run_directory", "tracking.manifest", "tracking.wandb_mirror")
    modules = (*modules, "reporting.leaderboard", "reporting.pareto")
    imports = "; ".join(f"import fedbench.{name}" for name in modules)
    check = "import sys; print([m for m in ('torch', 'wandb', 'matplotlib', 'safetensors') if m in sys.modules])"
    command = [sys.executable, "-c", f"{imports}; {check}"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_the_manifest_says_which_vector_kernels_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    found = machine("cpu")["numerics"]
    assert found["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert found["environment"]["ATEN_CPU_CAPABILITY"] == "default"


@pytest.mark.exhaustive
def test_the_fingerprint_tells_kernels_apart_that_round_differently() -> None:
    command = [sys.executable, "-c", "from fedbench.numerics import fingerprint; print(fingerprint())"]
    settings = [{}, {}, {"ATEN_CPU_CAPABILITY": "default"}, {"MKL_CBWR": "COMPATIBLE"}]
    found = [
        subprocess.run(command, env={**os.environ, **one}, capture_output=True, text=True, check=True).stdout
        for one in settings
    ]
    assert found[0] == found[1]
    assert len(set(found)) == 3
