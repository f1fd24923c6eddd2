"""A cell leaves the process as it found it, and no generator of the caller's is drawn from."""

import contextlib
import locale
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_config import TINY

import fedbench
from fedbench.cli import main
from fedbench.config import Config
from fedbench.errors import UserError
from fedbench.exits import ProcessExitError
from fedbench.federation.dry_run import dry_run
from fedbench.federation.experiment import check, prepare
from fedbench.running.cells import attempt, prepare_cells
from fedbench.running.evaluate import judge
from fedbench.running.isolation import in_turns, isolated, snapshot, told

Tiny = Callable[..., Config]
SMALL: dict[str, Any] = {"federation": {"num_clients": 2, "rounds": 2}, "probe": {"epochs": 1}}
VANDAL = '''
"""Sets whatever a process has one of, in every hook."""

import locale
import os
import random
import signal
import sys
import warnings
from dataclasses import dataclass

import numpy as np
import torch

from fedbench.federation import StagePlan, Strategy


def wreck():
    os.chdir("/")
    os.umask(0o077)
    os.environ["PATH"] = "/nowhere"
    os.environ["FEDBENCH_VANDAL"] = "was here"
    os.environ.pop("HOME", None)
    for seed in (random.seed, np.random.seed, torch.default_generator.manual_seed):
        seed(13)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_num_threads(torch.get_num_threads() + 2)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_grad_enabled(False)
    torch.set_autocast_enabled("cpu", True)
    torch.set_autocast_dtype("cpu", torch.float16)
    torch.set_autocast_cache_enabled(False)
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = True
    torch.backends.mkldnn.set_flags(_enabled=False)
    torch.backends.nnpack.set_flags(_enabled=False)
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.cuda.enable_math_sdp(False)
    torch.autograd.set_detect_anomaly(True)
    torch.set_flush_denormal(True)
    np.seterr(all="raise")
    warnings.simplefilter("error")
    sys.setrecursionlimit(12345)
    sys.path.insert(0, "/nowhere")
    sys.stdout = sys.stderr = open(os.devnull, "w")
    locale.setlocale(locale.LC_ALL, "C")
    if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 600)


@dataclass(frozen=True)
class Vandal(Strategy):
    ends: str = "well"

    def plan(self, stage, num_blocks):
        return StagePlan.end_to_end(num_blocks)

    def aggregate(self, updates, server):
        mean = super().aggregate(updates, server)
        if server.round_index == 1:
            if self.ends == "exits":
                os._exit(0)
            wreck()
            if self.ends == "raises":
                raise RuntimeError("wrecked")
        return mean
'''


@pytest.fixture
def vandal(tmp_path: Path) -> Path:
    (tmp_path / "vandal.py").write_text(VANDAL)
    return tmp_path / "vandal.py"


def process() -> dict[str, Any]:
    """What a plugin can set, as it is."""
    return {
        "folder": Path.cwd(),
        "umask": subprocess.run(["/bin/sh", "-c", "umask"], capture_output=True, text=True).stdout,
        "environment": dict(os.environ),
        "generators": generators(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "deterministic": (
            torch.get_deterministic_debug_mode(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "gradient": torch.is_grad_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "cache": torch.is_autocast_cache_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "mkldnn": torch.backends.mkldnn.enabled,
        "nnpack": torch._C._get_nnpack_enabled(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "sdp": torch.backends.cuda.math_sdp_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "denormal": float(torch.tensor([1e-40], dtype=torch.float32, device="cpu") * 1),
        "numpy": np.geterr(),
        "warnings": list(warnings.filters),
        "recursion": sys.getrecursionlimit(),
        "path": list(sys.path),
        "streams": (sys.stdout, sys.stderr),
        "locale": locale.setlocale(locale.LC_ALL),
        "signals": [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGINT)],
        "timer": signal.getitimer(signal.ITIMER_REAL)[0] > 0,
    }


def generators() -> tuple[object, ...]:
    numpy = np.random.get_state()
    return random.getstate(), str(numpy[1]), numpy[2:], torch.default_generator.get_state().numpy().tobytes()


@pytest.mark.parametrize("ends", ["well", "raises"])
def test_a_cell_that_sets_everything_leaves_the_process_as_it_was_and_the_next_one_has_its_own_bits(
    tiny: Tiny, tmp_path: Path, vandal: Path, ends: str
) -> None:
    alone = attempt(prepare_cells([tiny(SMALL)], tmp_path / "alone")[0])
    wild, tame = prepare_cells(
        [tiny(SMALL, {"strategy": {"name": str(vandal), "ends": ends}}), tiny(SMALL)], tmp_path / "after"
    )
    before = process()
    outcome = attempt(wild)
    after = process()
    assert {key: value for key, value in after.items() if value != before[key]} == {}
    assert outcome.state == "failed", outcome.words  # of itself: it cannot be judged on the device `meta`
    assert ("wrecked" in outcome.words) == (ends == "raises")
    assert attempt(tame).state == alone.state == "finished"
    one, two = (
        [path.read_bytes() for path in sorted((tmp_path / folder).glob("fedssl*/encoder*"))]
        for folder in ("alone", "after")
    )
    assert len(one) == 1
    assert one == two


@pytest.mark.exhaustive
def test_a_plugin_that_ends_the_process_fails_its_cell_by_name_and_the_next_one_runs(
    tmp_path: Path, vandal: Path
) -> None:
    axes = {"strategy": [{"name": str(vandal), "ends": "exits"}, "fedssl"]}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"base": {**TINY, **SMALL}, "axes": axes}))
    words = [sys.executable, "-m", "fedbench", "run", "--grid", tmp_path / "grid.yaml", "--out", tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "FAILED, ProcessExitError: os._exit(0) was called, which ends all cells without a word" in done.stderr
    assert "1 failed, 1 finished" in done.stderr
    (error,) = (tmp_path / "out").glob("*/error.txt")
    assert "vandal.py" in error.read_text()


@pytest.mark.parametrize("command", ["run", "run --dry-run", "profile", "check"])
@pytest.mark.parametrize("call", ["os._exit(0)", "sys.exit(0)"])
def test_a_plugin_that_ends_the_process_when_it_is_imported_is_an_error_of_the_user(
    tmp_path: Path, vandal: Path, capsys: pytest.CaptureFixture[str], call: str, command: str
) -> None:
    vandal.write_text(f"{VANDAL}\n{call}\n")
    (tmp_path / "cell.yaml").write_text(yaml.safe_dump({**TINY, **SMALL}))
    cell = [str(tmp_path / "cell.yaml"), f"strategy={vandal}"]
    words = [str(vandal)] if command == "check" else cell
    assert main([*command.split(), *words]) == 2
    assert f"a plugin: {call} was called" in capsys.readouterr().err


def test_a_child_of_a_cell_may_end_itself() -> None:
    with isolated(0):
        child = multiprocessing.get_context("fork").Process(target=os._exit, args=(7,))
        child.start()
        child.join()
        with pytest.raises(ProcessExitError):
            os._exit(7)
    assert child.exitcode == 7
    assert "fedbench" not in os._exit.__module__


def test_a_folder_that_is_gone_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with told(0):
        os.chdir(tmp_path)


# What draws, or may draw. The caller's generators are where they were, and where they are moves nothing.


@pytest.fixture
def unmoved() -> Callable[[], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def watched() -> Iterator[None]:
        before = generators()
        yield
        assert generators() == before

    return watched


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


DRAWING = '''
import random
from dataclasses import dataclass

import numpy as np
import torch

from fedbench.federation import StagePlan, Strategy


@dataclass(frozen=True)
class Drawing(Strategy):
    """Adds a draw from each global generator to what it makes."""

    def plan(self, stage, num_blocks):
        return StagePlan.end_to_end(num_blocks)

    def aggregate(self, updates, server):
        mean = super().aggregate(updates, server)
        noise = random.random() + np.random.rand() + torch.rand(()).item()
        return {key: value + 1e-3 * noise if value.is_floating_point() else value for key, value in mean.items()}
'''


@pytest.mark.parametrize("name", ["fedssl", "lw_fedssl@v3", "drawing"])
def test_seeds_around_a_run_change_no_bit_of_it_nor_it_them(tmp_path: Path, unmoved: Any, name: str) -> None:
    (tmp_path / "drawing.py").write_text(DRAWING)
    strategy = str(tmp_path / "drawing.py") if name == "drawing" else name
    tree = TINY | {"federation": {"num_clients": 2, "rounds": 3}, "strategy": strategy, "probe": {"epochs": 1}}
    tree |= {"evaluation": {"protocols": ["linear", "finetune"], "finetune": {"epochs": 1, "warmup_epochs": 0}}}
    found = []
    for seed in (1, 2):
        seed_all(seed)
        with unmoved():
            result = fedbench.run(tree, out=tmp_path / f"{seed}")
        aside = ("seconds", "files", "sha256")  # the manifest among them says when
        figures = {key: value for key, value in result.summary.items() if not key.startswith(aside)}
        found.append((figures, (result.path / "encoder.safetensors").read_bytes()))
    assert found[0] == found[1]


def test_rounds_in_turns_with_a_caller_that_draws_and_sets_are_those_of_a_run(
    tmp_path: Path, vandal: Path
) -> None:
    (tmp_path / "drawing.py").write_text(DRAWING)
    tree = {**TINY, **SMALL, "strategy": str(tmp_path / "drawing.py")}
    whole = fedbench.run(tree, out=tmp_path / "whole")
    restore = snapshot()
    for number, _ in enumerate(fedbench.federate(tree, out=tmp_path / "turns")):
        seed_all(number)
        torch.set_num_threads(3 + number)
        torch.set_default_dtype(torch.float64)
        before = process()
    assert process() == before  # the caller's own settings are kept
    restore()
    (turns,) = (tmp_path / "turns").glob("*/encoder.safetensors")
    assert turns.read_bytes() == (whole.path / "encoder.safetensors").read_bytes()


def test_a_generator_that_is_left_early_is_closed() -> None:
    ends = []

    def begin() -> Any:
        try:
            yield 1
        finally:
            ends.append("closed")

    turns = in_turns(0, begin)
    next(turns)
    turns.close()
    assert ends == ["closed"]


@pytest.mark.costs
@pytest.mark.dry_run
def test_neither_checks_nor_profiles_nor_judging_move_a_generator(
    tiny: Tiny, tmp_path: Path, unmoved: Any
) -> None:
    config = tiny(SMALL, {"strategy": "lw_fedssl@v3", "federation": {"rounds": 3}})
    result = fedbench.run(config, out=tmp_path)
    with unmoved():
        prepare(config)
    strategy, mechanisms, plans, _ = check(config, tried=True)
    with unmoved():
        dry_run(tiny(SMALL, {"ssl": {"output_dim": 12}}), strategy, mechanisms, plans)
    with unmoved():
        fedbench.profile(config)
    with unmoved():
        fedbench.results(tmp_path)
        result.encoder()(torch.zeros(1, 1, 8, 8))
    with unmoved():
        judge([result.path], ["knn", "few_label_10", "linear"], {}, {})


def test_an_error_before_the_first_round_leaves_the_process_as_it_was(
    tiny: Tiny, tmp_path: Path, vandal: Path
) -> None:
    vandal.write_text(f"{VANDAL}\nwreck()\nraise ImportError('wrecked')\n")
    before = process()
    with pytest.raises(UserError, match="wrecked"):
        fedbench.run(tiny(SMALL, {"strategy": str(vandal)}), out=tmp_path / "out")
    assert process() == before


def test_the_grace_that_is_left_survives_what_was_under_way_when_the_process_was_asked_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for is_asked in (False, True):
        monkeypatch.setattr("fedbench.stopping._asked", is_asked)
        with told(0):
            signal.setitimer(signal.ITIMER_REAL, 600)  # as the handler of SIGTERM does
        left = signal.setitimer(signal.ITIMER_REAL, 0)[0]
        assert (left > 0) == is_asked
