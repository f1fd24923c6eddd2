"""`numerics: portable`: what it demands, that a run has it, and that its bits are those of other processors."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from golden_losses import FILE, FURTHER, SSL_METHODS, config
from ssl_methods import fits, needed
from torch.utils._python_dispatch import TorchDispatchMode

from fedbench.cli import main
from fedbench.config import Config, load_config
from fedbench.errors import UserError
from fedbench.evaluation import evaluate
from fedbench.federation.experiment import prepare
from fedbench.federation.federation import Federation
from fedbench.numerics import PORTABLE, EnvironmentNeededError, environment, require
from fedbench.running.cells import prepare_cells
from fedbench.tracking.run_directory import RunDirectory

GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))
x86_64_linux = pytest.mark.skipif(
    (platform.machine(), sys.platform) != ("x86_64", "linux"), reason="portable means x86-64 Linux"
)
the_same_libraries = pytest.mark.skipif(
    GOLDEN["libraries"] != {name: metadata.version(name) for name in GOLDEN["libraries"]},
    reason=f"the golden losses are of {GOLDEN['libraries']}",
)


@x86_64_linux
@the_same_libraries
@pytest.mark.exhaustive
def test_every_strategy_and_method_has_the_golden_losses_whatever_processor_this_is():
    done = subprocess.run(
        [sys.executable, FILE.with_suffix(".py")], env=environment(), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["losses"] == GOLDEN["losses"]


@pytest.mark.exhaustive
@x86_64_linux
@the_same_libraries
def test_the_command_starts_itself_again_with_portable_kernels_and_so_do_its_workers(tmp_path: Path):
    file = tmp_path / "cell.yaml"
    tree = config("fedssl", "moco_v3").model_dump(mode="json", exclude_defaults=True)
    file.write_text(yaml.safe_dump({**tree, "engine": "processes", "workers": 1}))
    command = [sys.executable, "-m", "fedbench", "run", str(file), "--out", str(tmp_path / "runs")]
    plain = {name: value for name, value in os.environ.items() if name not in PORTABLE}
    subprocess.run(command, env=plain, capture_output=True, check=True)
    (run,) = (tmp_path / "runs").glob("fedssl*")
    losses = [loss.hex() for loss in RunDirectory(run).clients()["loss"].to_pylist()]
    assert losses == [loss for one in GOLDEN["losses"]["fedssl moco_v3"] for loss in one]
    numerics = json.loads((run / "manifest.json").read_text())["numerics"]
    assert (numerics["cpu_capability"], numerics["onednn"]) == ("DEFAULT", False)
    assert numerics["environment"].items() >= PORTABLE.items()


class Operators(TorchDispatchMode):
    """Notes the operators that ran, and whether one was a root written as a power."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        root = "sqrt" if "pow" in function.__name__ and isinstance(args[1], float) and args[1] == 0.5 else ""
        self.names |= {function.__name__.partition(".")[0].removeprefix("_foreach_").rstrip("_"), root}
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("ssl", [*SSL_METHODS, *FURTHER])
def test_no_operator_without_portable_bits_reaches_a_result(tiny: Callable[..., Config], tmp_path: Path, ssl: str):
    strategy = "lw_fedssl@v3" if fits(("lw_fedssl@v3", ssl)) else "lw_fedssl@v4"
    experiment = prepare(tiny(needed(ssl), strategy=strategy, ssl=ssl, federation={"rounds": 3}))
    federation = Federation(experiment, tmp_path)
    with Operators() as seen:
        list(federation.rounds())
        evaluate(federation.worker.task.method.encoder, experiment.dataset, experiment.config, ["linear", "knn"])
    assert "_fused_adamw" in seen.names
    assert not seen.names & {"sqrt", "log2", "log10", "tan", "asin", "atan"}


@pytest.mark.parametrize(("key", "value"), [("threads", 2), ("accelerator", "auto"), ("precision", "bf16-mixed")])
def test_portable_demands_one_thread_the_cpu_and_whole_precision(tiny: Callable[..., Config], key, value):
    with pytest.raises(UserError, match=f"numerics=portable with {key}={value}; allowed: with {key}="):
        tiny(numerics="portable", **{key: value})


@x86_64_linux
def test_without_the_environment_the_error_names_what_is_missing(tiny, monkeypatch: pytest.MonkeyPatch):
    for name, value in PORTABLE.items():
        monkeypatch.setenv(name, value)
    require(tiny(numerics="portable"))
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    with pytest.raises(EnvironmentNeededError, match="without MKL_CBWR=COMPATIBLE; allowed"):
        prepare(tiny(numerics="portable"))


def test_another_machine_than_x86_64_linux_is_refused(tiny, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(UserError, match="numerics=portable on aarch64 linux; allowed: on x86_64 linux"):
        require(tiny(numerics="portable"))


@x86_64_linux
def test_called_from_python_the_command_fails_and_does_not_replace_the_process(capsys):
    words = ["numerics=portable", "threads=1", "accelerator=cpu"]
    assert main(["run", "digits", *words]) == 2
    assert "numerics=portable without ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE" in capsys.readouterr().err


def test_cells_with_and_without_portable_kernels_are_not_run_by_one_process(tiny, tmp_path: Path):
    with pytest.raises(UserError, match="numerics=portable in some cells only; allowed: in all or none"):
        prepare_cells([tiny(), tiny(numerics="portable")], tmp_path)


def test_a_configuration_without_the_key_is_written_as_before():
    assert "numerics" not in load_config().model_dump(mode="json")


def test_settle_would_notice_kernels_that_are_not_portable(tiny):
    from fedbench.numerics import settle

    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("this process has portable kernels already")
    with pytest.raises(UserError, match="torch has chosen its kernels"):
        settle(tiny(numerics="portable"))
