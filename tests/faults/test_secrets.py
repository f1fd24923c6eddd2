"""What a run tells, and whom: no secret in any file or line, and with W&B offline nobody anything at all."""

import gzip
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_config import TINY

from fedbench.cli import main
from fedbench.masking import shareable, without_secrets
from fedbench.tracking import wandb_server

SECRETS = {
    "WANDB_API_KEY": "planted1" * 5,
    "AWS_SECRET_ACCESS_KEY": "planted2/wJalrXUtnFEMI+bPxRfiCY",
    "HTTPS_PROXY": "http://planted3:planted4@127.0.0.1:9",
    "HF_TOKEN": "planted5-hf-token",
    "USER": "planted6",
    "LOGNAME": "planted6",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "remote.origin.url",
    "GIT_CONFIG_VALUE_0": "https://planted7:planted8@example.org/mine.git",
}
UNLUCKY = '''
"""Tells its environment in round `at`, as a library does that cannot reach a proxy."""

import os
from dataclasses import dataclass

from fedbench.federation import StagePlan, Strategy


@dataclass(frozen=True)
class Unlucky(Strategy):
    at: int = 1

    def plan(self, stage, num_blocks):
        return StagePlan.end_to_end(num_blocks)

    def aggregate(self, updates, server):
        if server.round_index == self.at:
            told = [os.environ[name] for name in ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY")]
            raise RuntimeError(f"cannot reach {told} from {os.path.expanduser('~/x')}")
        return super().aggregate(updates, server)
'''
# What Python itself asks of a network, and how it starts wandb's service.
WATCH = """
import os, socket, subprocess

def note(*words):
    with open(os.environ["ASKED"], "a") as file:
        print(*words, file=file)

def watched(owner, name, tells):
    before = getattr(owner, name)
    def call(*words, **more):
        told = tells(*words, **more)
        if told:
            note(name, told)
        return before(*words, **more)
    setattr(owner, name, call)

inet = lambda sock, *words: words if sock.family in (socket.AF_INET, socket.AF_INET6) else None
for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getnameinfo", "getfqdn"):
    watched(socket, name, lambda *words, **more: words)

class Watched(socket.socket):
    def connect(self, *words):
        if inet(self, *words):
            note("connect", *words)
        return super().connect(*words)

    def sendto(self, *words):
        if inet(self, *words):
            note("sendto", *words)
        return super().sendto(*words)

socket.socket = Watched
watched(subprocess.Popen, "__init__", lambda self, command, **_: command if "wandb-core" in str(command) else None)
"""
STRACE = ("strace", "-f", "--seccomp-bpf", "-e", "trace=connect,sendto,sendmsg,sendmmsg")


@dataclass(frozen=True)
class Told:
    """All that a grid of a cell that ends and one that fails left behind."""

    out: Path
    printed: str
    asked: list[str]  # of a network, by Python
    calls: list[str] | None  # of the kernel, by all processes: those that send; None without strace

    def files(self) -> Iterator[tuple[Path, bytes]]:
        for path in self.out.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                yield path.relative_to(self.out), gzip.decompress(content) if path.suffix == ".gz" else content


def can_trace(folder: Path) -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run([*STRACE, "-o", folder / "tried", "true"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = tmp_path_factory.mktemp("told")
    home, out, watch, repository = (folder / name for name in ("planted9", "out", "watch", "repository"))
    (home / "ideas").mkdir(parents=True)
    (home / "ideas" / "unlucky.py").write_text(UNLUCKY)
    digits = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), np.uint8)
    np.savez(home / "pictures.npz", images=digits, labels=np.arange(60) % 3)
    watch.mkdir()
    (watch / "sitecustomize.py").write_text(WATCH)
    tree = TINY | {
        "data": {"name": "npz", "path": str(home / "pictures.npz")},
        "federation": {"num_clients": 2, "rounds": 2, "local_epochs": 1},
        "tracking": {"wandb": "offline", "entity": "planted10"},
    }
    axes = {"strategy": ["fedssl", str(home / "ideas" / "unlucky.py")]}
    (folder / "grid.yaml").write_text(yaml.safe_dump({"base": tree, "axes": axes}))
    subprocess.run(["git", "init", "-q", repository], check=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "GIT_"))}
    env = kept | SECRETS | {"HOME": str(home), "PYTHONPATH": str(watch), "ASKED": str(folder / "asked")}
    run = [sys.executable, "-m", "fedbench", "run", "--grid", str(folder / "grid.yaml"), "--out", str(out)]
    trace = [*STRACE, "-o", str(folder / "calls")] if can_trace(folder) else []
    done = subprocess.run([*trace, *run], env=env, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr  # one cell failed
    assert "1 finished" in done.stderr
    asked = (folder / "asked").read_text().splitlines() if (folder / "asked").is_file() else []
    calls = (folder / "calls").read_text().splitlines() if trace else None
    return Told(out, done.stdout + done.stderr, asked, calls)


@pytest.mark.exhaustive
def test_no_file_of_a_run_and_no_line_that_is_printed_holds_a_planted_secret(told: Told) -> None:
    assert re.findall(r"planted\d+", told.printed) == []
    found = {str(path): sorted(set(re.findall(rb"planted\d+", content))) for path, content in told.files()}
    names = {path.rpartition("/")[2] for path in found}
    assert {"manifest.json", "error.txt", "summary.json", "ledger.csv.gz", "debug.log", "report.html"} <= names
    of_wandb = {path for path in found if "/wandb/" in path}
    assert {path: what for path, what in found.items() if what and path not in of_wandb} == {}
    # W&B's own files name what it takes to upload them: the account, and the leaderboard's where its table waits.
    allowed = {True: {b"planted10", b"planted9"}, False: {b"planted10"}}
    assert all(allowed[path.startswith("leaderboard/")] >= set(found[path]) for path in of_wandb)


def test_an_error_text_still_says_what_happened_and_where(told: Told) -> None:
    (error,) = told.out.glob("*/error.txt")
    text = error.read_text()
    assert "cannot reach ['***', '***', 'http://***@127.0.0.1:9'] from ~/x" in text
    assert 'File "~/ideas/unlucky.py", line' in text
    assert "FAILED, RuntimeError: cannot reach" in told.printed


@pytest.mark.dry_run
def test_an_error_before_the_first_round_tells_no_secret_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "unlucky.py").write_text(UNLUCKY)
    (tmp_path / "cell.yaml").write_text(yaml.safe_dump(TINY))
    words = [str(tmp_path / "cell.yaml"), f"strategy={{name: {tmp_path / 'unlucky.py'}, at: 0}}"]
    assert main(["run", *words, "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert "RuntimeError: cannot reach ['***', '***', 'http://***@127.0.0.1:9']" in printed
    assert "planted" not in printed


def test_the_manifest_and_what_wandb_is_told_name_neither_machine_nor_folder(told: Told) -> None:
    for path, content in told.files():
        if path.suffix in (".json", ".jsonl", ".md", ".csv", ".txt") or path.name == "config.yaml":
            assert re.search(rf"\b{re.escape(socket.gethostname())}\b".encode(), content) is None, path
            assert str(told.out).encode() not in content, path
    (finished,) = told.out.glob("fedssl*/manifest.json")
    assert json.loads(finished.read_text())["config"]["data"]["path"] == "pictures.npz"


def test_offline_python_asks_no_network_and_wandb_is_started_without_its_reports(told: Told) -> None:
    service = [line for line in told.asked if "wandb-core" in line]
    assert [line for line in told.asked if line not in service] == []
    assert service
    assert all("--no-observability" in line for line in service)


def test_offline_no_process_of_a_run_sends_anything_to_an_address(told: Told) -> None:
    if told.calls is None:
        pytest.skip("strace shows what wandb's own service does")
    assert any("AF_UNIX" in call for call in told.calls)  # how the processes of a run talk with one another
    assert [call for call in told.calls if re.search(r"AF_INET6?|AF_PACKET", call)] == []


def test_a_value_called_like_a_secret_and_a_password_in_an_address_are_masked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_ACCESS_TOKEN", "hidden-value")
    monkeypatch.setenv("MY_ACCESS_TOKENS_EVERY", "10")
    text = "hidden-value at ftp://me:pw@host/a@b and https://token@host, 10 times"
    assert without_secrets(text) == "*** at ftp://***@host/a@b and https://***@host, 10 times"
    assert without_secrets("https://host/a@b, me@host") == "https://host/a@b, me@host"


def test_the_home_folder_is_a_tilde_and_its_neighbours_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert shareable("/home/ann/x.py /home/anna/x.py '/home/ann'") == "~/x.py /home/anna/x.py '~'"


def test_wandbs_reports_are_off_only_while_it_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(wandb_server.REPORTING, "true")
    with wandb_server.unreported():
        assert os.environ[wandb_server.REPORTING] == "false"
    assert os.environ[wandb_server.REPORTING] == "true"
    monkeypatch.delenv(wandb_server.REPORTING)
    with wandb_server.unreported():
        pass
    assert wandb_server.REPORTING not in os.environ
