"""Cells on Ray: the same bits as alone, whoever dies on the way, whether a node sees the results or not."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from ipaddress import IPv4Address
from pathlib import Path
from socket import gethostname
from typing import Any
from uuid import uuid4

import pytest
import yaml
from ray_cluster import STORE, ray_cluster
from tiny_config import TINY

from fedbench.cli import main
from fedbench.config import Config
from fedbench.errors import UserError
from fedbench.federation import checkpoint
from fedbench.federation.experiment import prepare
from fedbench.files import exclusive
from fedbench.metering.costs import StepCosts
from fedbench.numerics import PORTABLE
from fedbench.ray_cluster import OWN, PRIVATE, TOKEN, _check_answers
from fedbench.running import ray_cells
from fedbench.running.cell import Outcome, cell_name, cell_rounds
from fedbench.running.cells import prepare_cells, run_cells
from fedbench.running.cluster import differences, installed
from fedbench.running.needs import Needs, gpu_share, needs, with_slack
from fedbench.running.ray_cells import Shared, _marked, on_ray
from fedbench.tensor_file import tensor_digest, unpack
from fedbench.tracking.progress import Progress
from fedbench.tracking.run_directory import RunDirectory

Tiny = Callable[..., Config]
PLUGIN = '''
"""FedSSL whose process is killed in the third round, `times` times."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from fedbench.methods.federation.fedssl import FedSSL


@dataclass(frozen=True)
class Unlucky(FedSSL):
    times: int = 0
    pause: float = 0.0

    def aggregate(self, updates, server):
        (Path(__file__).parent / "parent").write_text(str(os.getppid()))
        time.sleep(self.pause)
        deaths = Path(__file__).parent / f"deaths-{self.times}"
        so_far = len(deaths.read_text()) if deaths.exists() else 0
        if server.round_index == 2 and so_far < self.times:
            deaths.write_text("x" * (so_far + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().aggregate(updates, server)
'''


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_cluster(num_cpus=2) as cluster:
        yield cluster


@pytest.fixture
def unlucky(tmp_path: Path, tiny: Tiny) -> Tiny:
    """`unlucky(times=1)`: the tiny configuration under `PLUGIN`."""
    (tmp_path / "unlucky.py").write_text(PLUGIN)

    def build(times: int = 0, pause: float = 0.0, **keys: Any) -> Config:
        strategy = {"name": str(tmp_path / "unlucky.py"), "times": times, "pause": pause, "moon": True}
        return tiny({"strategy": strategy}, **keys)

    return build


def files(out: Path) -> dict[str, str]:
    """The names of all files of the runs; of those with tensors, what is in them; of some others, their bytes."""
    return {str(path.relative_to(out)): _of(path) for path in out.glob("*/**/*") if path.is_file()}


def _of(path: Path) -> str:
    if path.suffix == ".safetensors" and path.name != "encoder.safetensors":
        return tensor_digest(unpack(path)[1])  # the order of the facts in its head is not always the same
    tells_time = path.name in ("rounds.jsonl", "clients.arrow", "summary.json", "manifest.json")
    return "" if tells_time else sha256(path.read_bytes()).hexdigest()


def digests(out: Path) -> list[str]:
    """Of the server's values after every round."""
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    return [line["server/sha256"] for line in RunDirectory(folder).rounds()]


@pytest.fixture
def _unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """No node sees the folder of results: the word in it is another one."""

    @contextmanager
    def marked(out: Path) -> Iterator[Shared]:
        yield Shared(out / "marker", "not there")

    monkeypatch.setattr(ray_cells, "_marked", marked)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("cluster")
def test_cells_on_ray_have_the_same_bits_and_the_table_tells_their_node(tiny: Tiny, tmp_path: Path) -> None:
    configs = [tiny(strategy="fedssl"), tiny(strategy="lw_fedssl@v3")]
    run_cells(configs, tmp_path / "alone")
    tasks = prepare_cells(configs, tmp_path / "ray")
    progress = Progress([(task.directory, task.cell_hash, 6) for task in tasks])
    ended = on_ray(tasks, tmp_path / "ray", progress, OWN)
    _, first = next(ended)
    nodes = progress.nodes()
    assert {first.state, *(outcome.state for _, outcome in ended)} == {"finished"}
    assert nodes == dict.fromkeys(nodes.keys(), gethostname())
    assert len(nodes) == 1
    assert files(tmp_path / "ray") == files(tmp_path / "alone")
    assert run_cells(configs, tmp_path / "ray", ray_address=OWN) == {"finished": 2}


@pytest.mark.exhaustive
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("sees_folder", [True, False])
def test_a_killed_workers_cell_goes_on_after_its_last_round(
    unlucky: Tiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    sees_folder: bool,
) -> None:
    if not sees_folder:
        request.getfixturevalue("_unseen")
    out = tmp_path / "out"
    assert run_cells([unlucky(times=1)], out, ray_address=OWN) == {"finished": 1}
    said = capsys.readouterr().err
    assert f"its worker died on {gethostname()}; it goes on after its last round" in said
    assert "resumed after round 2" in said
    assert run_cells([unlucky(times=1)], tmp_path / "alone") == {"finished": 1}
    assert files(out) == files(tmp_path / "alone")
    assert digests(out) == digests(tmp_path / "alone")
    assert not list(out.glob(".seen-*"))


@pytest.mark.exhaustive
@pytest.mark.usefixtures("cluster")
def test_a_cell_over_which_workers_die_fails_by_name_and_the_rest_is_run(
    unlucky: Tiny, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cells([unlucky(times=9), tiny()], tmp_path / "out", ray_address=OWN) == {"failed": 1, "finished": 1}
    assert "FAILED, its worker died 3 times without a round between" in capsys.readouterr().err
    assert (tmp_path / "deaths-9").read_text() == "xxx"
    (error,) = (tmp_path / "out").glob("*/error.txt")
    assert error.read_text().startswith("its worker died 3 times")


@pytest.mark.exhaustive
def test_a_lost_nodes_cell_goes_on_elsewhere(
    cluster: Any, unlucky: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = unlucky(pause=0.5, threads=3), tmp_path / "out"  # the head has two cores
    others = [cluster.add_node(num_cpus=3, **STORE) for _ in range(2)]

    def kill() -> None:
        until(lambda: any(path.read_text().count("\n") >= 2 for path in out.glob("*/rounds.jsonl")))
        raylet = int((tmp_path / "parent").read_text())
        (used,) = (one for one in others if one.all_processes["raylet"][0].process.pid == raylet)
        cluster.remove_node(used, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    states = run_cells([config], out, ray_address=OWN)
    killer.join()
    for one in set(others) & set(cluster.list_all_nodes()):
        cluster.remove_node(one)
    said = capsys.readouterr().err
    assert states == {"finished": 1}, said
    assert "its worker died on" in said
    assert "resumed after round" in said
    run_cells([config], tmp_path / "alone")
    assert digests(out) == digests(tmp_path / "alone")


@pytest.mark.exhaustive
@pytest.mark.usefixtures("cluster", "_unseen")
def test_what_a_node_does_not_see_is_sent_there_and_fetched(
    unlucky: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = unlucky(tracking={"checkpoints": 2})
    for out in ("there", "alone"):
        rounds = cell_rounds(prepare(config), tmp_path / out)
        for _ in range(3):
            next(rounds)
        rounds.close()
    run_cells([config], tmp_path / "alone")
    assert run_cells([config], tmp_path / "there", ray_address=OWN) == {"finished": 1}
    assert capsys.readouterr().err.count("resumed after round 3") == 2
    assert files(tmp_path / "there") == files(tmp_path / "alone")
    assert digests(tmp_path / "there") == digests(tmp_path / "alone")


@pytest.mark.usefixtures("cluster", "_unseen")
def test_an_error_on_a_node_that_does_not_see_the_folder_stands_in_it(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.py").write_text(
        "from fedbench.methods.federation.fedssl import FedSSL\n"
        "class Bad(FedSSL):\n    def aggregate(self, updates, server):\n        raise RuntimeError('no luck')\n"
    )
    assert run_cells([tiny(strategy=str(tmp_path / "bad.py"))], tmp_path / "out", ray_address=OWN) == {"failed": 1}
    (error,) = (tmp_path / "out").glob("*/error.txt")
    assert "RuntimeError: no luck" in error.read_text()
    assert f"FAILED, RuntimeError: no luck (see {error})" in capsys.readouterr().err


@pytest.mark.exhaustive
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("sees_folder", [True, False])
def test_a_cell_that_another_process_runs_is_left_to_it(
    tiny: Tiny, tmp_path: Path, request: pytest.FixtureRequest, sees_folder: bool
) -> None:
    if not sees_folder:
        request.getfixturevalue("_unseen")
    configs = [tiny(seed=0), tiny(seed=1)]
    with exclusive(tmp_path / cell_name(prepare(configs[0]))):
        assert run_cells(configs, tmp_path, ray_address=OWN) == {"elsewhere": 1, "finished": 1}


@pytest.mark.usefixtures("cluster")
def test_a_node_with_other_software_runs_nothing_and_says_what_differs(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_cells, "installed", lambda: {**installed(), "torch": "0.1"})
    assert run_cells([tiny()], tmp_path, ray_address=OWN) == {"failed": 1}
    said = capsys.readouterr().err
    assert f"{gethostname()} has other software: torch" in said
    assert "there and 0.1 here" in said
    assert not list(tmp_path.glob("*/rounds.jsonl"))


def test_what_differs_is_named_on_both_sides() -> None:
    assert differences({"a": "1", "b": "2"}, {"a": "1", "b": "3"}) == "b 2 there and 3 here"
    assert differences({"a": "1"}, {"a": "1"}) == ""
    assert differences({}, {"a": "1"}) == "a None there and 1 here"


def test_a_dead_nodes_lock_is_waited_for(tmp_path: Path) -> None:
    begin = time.monotonic()
    with exclusive(tmp_path):
        ray_cells._wait(tmp_path, patience=1.2)
    assert 1.0 < time.monotonic() - begin < 5
    ray_cells._wait(tmp_path, patience=60)
    assert time.monotonic() - begin < 10


def test_a_cell_asks_for_the_cores_that_it_uses(tiny: Tiny) -> None:
    assert needs(tiny(threads=3), StepCosts()) == Needs(3, 0)
    assert needs(tiny(threads=3, engine="processes", workers=2), StepCosts()) == Needs(6, 0)
    with pytest.raises(UserError, match="allowed: workers=N"):
        needs(tiny(engine="processes"), StepCosts())


def test_cells_share_a_gpu_by_what_is_predicted_of_them() -> None:
    gib = 1 << 30
    assert gpu_share(with_slack(0), 80 * gib) == 0.02  # a GiB that nobody predicts: 1.25 %
    assert gpu_share(with_slack(2 * gib), 80 * gib) == 0.05  # and one and a half of what is predicted
    assert gpu_share(with_slack(2 * gib + 1), 80 * gib) == 0.06
    assert gpu_share(with_slack(500 * gib), 80 * gib) == 1.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--address", "auto"], "without --engine ray"),
        (["--engine", "ray", "--jobs", "2"], "--jobs 2 with --engine ray"),
        (["--engine", "ray", "--address", "ray://host:10001"], "allowed: auto, HOST:PORT"),
        (["--engine", "ray", "engine=processes"], "allowed: workers=N"),
    ],
)
def test_what_does_not_go_with_ray_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(TINY))
    assert main(["run", str(path), "--out", str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err


def test_without_ray_it_is_said_how_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fedbench.ray_cluster.find_spec", lambda name: None)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(TINY))
    assert main(["run", str(path), "--out", str(tmp_path / "out"), "--engine", "ray"]) == 2
    assert capsys.readouterr().err == (
        "fedbench: engine ray: Ray is not installed; allowed: with pip install 'fedbench[ray]'\n"
    )


@pytest.mark.parametrize(
    ("address", "said"), [("127.0.0.1:9", "Connection refused"), ("head:x", "invalid literal")]
)
def test_an_address_at_which_nobody_answers_is_named(address: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"--address {address}: .*{said}"):
        _check_answers(address)


@pytest.mark.exhaustive
def test_who_does_not_ask_for_ray_does_not_import_it(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**TINY, "federation": {"num_clients": 1, "rounds": 1, "local_epochs": 1}}))
    code = (
        "import sys; from fedbench.cli import main\n"
        f"assert main(['run', {str(path)!r}, '--out', {str(tmp_path / 'out')!r}]) == 0\n"
        "assert 'ray' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_a_killed_command_left_goes_and_that_of_one_that_runs_stays(tmp_path: Path) -> None:
    (tmp_path / ".seen-killed").write_text("a word")
    with _marked(tmp_path) as first, _marked(tmp_path) as second:
        assert first.is_seen()
        assert second.is_seen()
        assert set(tmp_path.iterdir()) == {first.marker, second.marker}
    assert not list(tmp_path.iterdir())


@contextmanager
def own_ray(mark: str) -> Iterator[str]:
    """A Ray of a process with `mark` in its environment, at that address."""
    code = (
        "import sys; from fedbench.ray_cluster import OWN, connected\n"
        "with connected(OWN, 1) as ray:\n"
        "    print(ray.get_runtime_context().gcs_address, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command, pipe, environment = [sys.executable, "-c", code], subprocess.PIPE, {**os.environ, mark: "1"}
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate("")


@pytest.mark.exhaustive
def test_a_ray_of_this_machines_own_listens_on_the_loopback_alone_and_tells_nobody() -> None:
    mark = f"FEDBENCH_{uuid4().hex}"
    with own_ray(mark):
        processes = marked(mark)
        assert listening(processes) == {"127.0.0.1"}
        commands = [Path(f"/proc/{number}/cmdline").read_bytes() for number in processes]
        assert any(b"gcs_server" in one for one in commands)
        assert not any(b"dashboard/dashboard.py" in one for one in commands)  # it asks cloud providers


@pytest.mark.exhaustive
def test_a_ray_of_this_machines_own_lets_nobody_in_without_its_token() -> None:
    environment = {**os.environ, **PRIVATE, TOKEN: "0" * 64}
    with own_ray("FEDBENCH_TEST") as address:
        stranger = [sys.executable, "-c", f"import ray; ray.init({address!r})"]
        done = subprocess.run(stranger, env=environment, capture_output=True, text=True, check=False)
    assert "AuthenticationError" in done.stderr


@pytest.mark.exhaustive
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_grid_keeps_whole_rounds_and_no_process_is_left(tmp_path: Path, how: signal.Signals) -> None:
    path, mark = tmp_path / "grid.yaml", f"FEDBENCH_{uuid4().hex}"
    long = {**TINY, "federation": {"num_clients": 3, "rounds": 10_000, "local_epochs": 1}}
    path.write_text(yaml.safe_dump({"base": long, "axes": {"seed": [0, 1]}}))
    words = ["run", "--grid", str(path), "--out", str(tmp_path / "out"), "--engine", "ray"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fedbench", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, mark: "1"},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell ignores it in the background
    )
    try:
        until(lambda: len(list((tmp_path / "out").glob("*/checkpoint.safetensors"))) == 2)
        if how == signal.SIGINT:
            os.killpg(process.pid, how)  # as a terminal does
        else:
            process.send_signal(how)
        output, text = process.communicate(timeout=60)
        assert until(lambda: not marked(mark), seconds=10), marked(mark)
    finally:
        for number in marked(mark):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[how], text
    assert b"the same command goes on after the last whole round" in text
    assert b"Traceback" not in text
    assert output == b""
    for folder in (tmp_path / "out").glob("*-seed*"):
        kept = checkpoint.load(folder / checkpoint.NAME)
        assert RunDirectory(folder).rewind(kept.facts["marks"]) == ""
    assert not list((tmp_path / "out").glob(".seen-*"))


@pytest.mark.exhaustive
@pytest.mark.usefixtures("cluster")
def test_a_stop_waits_for_the_round_under_way_and_begins_no_cell(
    unlucky: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [unlucky(pause=2, threads=2, seed=seed) for seed in (0, 1)]  # the second waits for its cores
    tasks = prepare_cells(configs, tmp_path)
    progress, begun = Progress([]), list[float]()

    def ask() -> bool:
        if progress.running() and not begun:
            begun.append(time.monotonic())
        return bool(begun) and time.monotonic() > begun[0] + 1

    monkeypatch.setattr("fedbench.stopping.is_asked", ask)
    ended: list[Outcome] = [outcome for _, outcome in on_ray(tasks, tmp_path, progress, OWN)]
    assert [outcome.state for outcome in ended] == ["stopped", "stopped"]
    (kept,) = (checkpoint.load(path) for path in tmp_path.glob(f"*/{checkpoint.NAME}"))
    assert kept.facts["rounds_done"] == 1


@pytest.mark.exhaustive
@pytest.mark.usefixtures("cluster")
def test_portable_numerics_reach_workers_of_a_ray_that_was_started_without(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in PORTABLE.items():
        monkeypatch.setenv(name, value)
    assert run_cells([tiny(numerics="portable")], tmp_path, ray_address=OWN) == {"finished": 1}
    (folder,) = tmp_path.glob("*-seed*")
    assert RunDirectory(folder).manifest()["numerics"]["cpu_capability"] == "DEFAULT"


def until(holds: Callable[[], bool], seconds: float = 120) -> bool:
    """Wait for it; whether it came."""
    end = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < end:
        time.sleep(0.1)
    return held


def marked(name: str) -> list[int]:
    """Processes with that variable in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"{name}=".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def listening(processes: Iterable[int]) -> set[str]:
    """Addresses on which they take connections over IP."""
    inodes = set()
    for process in processes:
        for path in Path(f"/proc/{process}/fd").glob("*"):
            with suppress(OSError):
                inodes.add(str(path.readlink()).removeprefix("socket:[").rstrip("]"))
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()
    ]
    words = [line[1].split(":")[0] for line in lines if line[3] == "0A" and line[9] in inodes]
    return {str(IPv4Address(int(word[-8:], 16).to_bytes(4, "little"))) for word in words}
