"""Weights & Biases as a mirror of the run directory: it may lose its reflection, it never stops a run.

A key means one thing. The keys of rounds.jsonl are a round's figures; `so_far/...` is their sum over the rounds so
far, an x-axis; `run/...` are the figures of summary.json, of the whole run.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from fedbench.config import TrackingConfig
from fedbench.files import write_atomically
from fedbench.tracking import wandb_server
from fedbench.tracking.run_directory import WANDB_ADDRESS
from fedbench.tracking.wandb_server import unreported, warn

INIT_TIMEOUT_S = 20
FINISH_TIMEOUT_S = 30  # then what was not uploaded stays on the disk
BYTES, FLOPS = "so_far/all_clients/bytes", "so_far/all_clients/flops"
SUMS = {
    BYTES: ("all_clients/download_bytes", "all_clients/upload_bytes"),
    FLOPS: ("all_clients/flops",),
}
X_AXES = {
    "train/*": FLOPS,
    "probe/*": BYTES,
    "features/*": BYTES,
}  # a panel can take another one


class Place(NamedTuple):
    """Of a run on the W&B server."""

    entity: str
    project: str
    url: str


class WandbMirror:
    """One W&B run, of a cell or of the leaderboard, written under `folder`; use as a context manager.

    A thread of its own calls wandb, one call after the other: training waits for W&B at the end alone.
    `online` without a key or without a network becomes `offline`, for the rest of the process. The first
    exception inside wandb is told on stderr and ends the mirror.
    """

    def __init__(
        self,
        config: TrackingConfig,
        name: str,
        run_config: Mapping[str, Any],
        folder: Path,
        run_id: str | None = None,
        kind: Literal["cell", "leaderboard"] = "cell",
        group: str | None = None,
    ) -> None:
        """`run_id`: of the W&B run. A cell's that exists is gone on with, a leaderboard's is written anew.

        `group`: where the configuration names none.
        """
        self.config = config
        self.name = name
        self.run_config = run_config
        self.folder = folder
        self.run_id = run_id
        self.kind = kind
        self.group = config.group or group
        self._sums = dict.fromkeys(SUMS, 0.0)
        self._run: Any = None
        self._thread = ThreadPoolExecutor(max_workers=1)  # it starts with the first call

    def __enter__(self) -> Self:
        self._call(unreported()(self._start))
        return self

    @property
    def place(self) -> Place | None:
        """Where an online run is to be seen; None for one that is not online. Waits until that is known."""
        self._wait()
        run = self._run
        return None if run is None or run.offline else Place(run.entity, run.project, run.url)

    def log_round(self, record: Mapping[str, Any], step: int) -> None:
        """The numbers of one round as one metric set at `step`, unless the W&B run has that step already.

        A run that is gone on with is told its earlier rounds too: the sums begin with the first.
        """
        for total, keys in SUMS.items():
            self._sums[total] += sum(record.get(key, 0) for key in keys)
        numbers = {key: value for key, value in record.items() if isinstance(value, int | float)} | self._sums
        self._if_running(lambda run: run.log(numbers, step=step) if step >= run.starting_step else None)

    def show(self, media: Callable[[], Mapping[str, Any]]) -> None:
        """What `media` makes of tables and pictures; it is not called where there is no run."""
        self._if_running(lambda run: run.log(dict(media())))

    def keep(self, encoder: Path) -> None:
        """Upload a file of weights as an artifact, where the configuration asks for it."""
        if self.config.artifact:
            self._if_running(lambda run: run.log_artifact(_artifact(encoder, f"encoder-{self.run_id}")))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Add the figures of the finished run to W&B's summary under `run/`, and close it as successful.

        wandb's service may still be writing its log for some milliseconds after this returns.
        """
        figures = {f"run/{key}": value for key, value in summary.items()}
        self._if_running(lambda run: run.summary.update(figures))
        self._close(exit_code=0)
        self._wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(exit_code=1)  # only a run that `finish` did not close is still open here
        self._thread.shutdown()

    def _close(self, exit_code: int) -> None:
        def close(run: Any) -> None:
            run.finish(exit_code=exit_code)
            self._run = None

        self._if_running(close)

    def _if_running(self, action: Callable[[Any], object]) -> None:
        self._call(lambda: None if self._run is None else action(self._run))

    def _call(self, action: Callable[[], object]) -> None:
        if self.config.wandb != "disabled":
            self._thread.submit(self._guarded, action)

    def _wait(self) -> None:
        self._thread.submit(lambda: None).result()

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except TimeoutError:
            self._run = None
            wandb_server.SERVER.lose(f"an upload took more than {FINISH_TIMEOUT_S} s", self.folder)
        except Exception as error:
            self._run = None
            warn(f"W&B mirror switched off: {type(error).__name__}: {error}")

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)  # wandb would go elsewhere without a word
        if self.config.wandb == "online":
            self._run = self._start_online()
        self._run = self._run or self._init("offline")
        if self.kind == "cell":
            _define_axes(self._run)

    def _start_online(self) -> Any:
        import wandb

        try:
            if not wandb_server.SERVER.is_up(self.folder):
                return None
            run = self._init("online")
            write_atomically(self.folder / WANDB_ADDRESS, f"{run.url}\n".encode())
            return run
        except Exception as error:
            wandb_server.SERVER.lose(str(error).partition("\n")[0], self.folder)
            wandb.teardown()  # else wandb's service takes the run's id for one in use
            return None

    def _init(self, mode: str) -> Any:
        import wandb

        return wandb.init(
            mode=mode,  # type: ignore[arg-type]
            dir=str(self.folder),
            name=self.name,
            id=self.run_id,
            resume="allow" if self.run_id and self.kind == "cell" else None,
            job_type=self.kind,
            project=self.config.project,
            entity=self.config.entity,
            group=self.group,
            tags=self.config.tags,
            config=dict(self.run_config),
            reinit="create_new",  # one run per cell, however many cells a process runs
            settings=_settings(),
        )


def _define_axes(run: Any) -> None:
    for axis in SUMS:
        run.define_metric(axis)
    for figures, axis in X_AXES.items():
        run.define_metric(figures, step_metric=axis)


def _artifact(file: Path, name: str) -> Any:
    import wandb

    artifact = wandb.Artifact(name, type="model")
    artifact.add_file(str(file), policy="immutable", skip_cache=True)  # no copy in wandb's cache
    return artifact


def _settings() -> Any:
    """Quiet, bounded in time, and without the machine's and the user's name."""
    import wandb

    return wandb.Settings(
        console="off",
        silent=True,
        init_timeout=INIT_TIMEOUT_S,
        finish_timeout=FINISH_TIMEOUT_S,
        finish_timeout_raises=True,
        disable_git=True,
        disable_code=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
        program="fedbench",  # else the path of this installation
    )
