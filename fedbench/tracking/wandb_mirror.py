"""Weights & Biases as a mirror of the run directory: it may lose its reflection, it never stops a run."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedbench.config import TrackingConfig

INIT_TIMEOUT_S = 30
FINISH_TIMEOUT_S = 120


class WandbMirror:
    """One W&B run for one cell, written under `folder`; use as a context manager.

    `online` without a key or without a network becomes `offline`. The first exception inside wandb is
    told on stderr and ends the mirror.
    """

    def __init__(
        self,
        config: TrackingConfig,
        cell_name: str,
        run_config: Mapping[str, Any],
        folder: Path,
        run_id: str | None = None,
    ) -> None:
        """`run_id`: of the W&B run; one that exists is gone on with."""
        self.config = config
        self.cell_name = cell_name
        self.run_config = run_config
        self.folder = folder
        self.run_id = run_id
        self._run: Any = None

    def __enter__(self) -> Self:
        if self.config.wandb != "disabled":
            self._guarded(self._start)
        return self

    def log_round(self, record: Mapping[str, Any], step: int) -> None:
        """The numbers of one round as one metric set at `step`."""
        numbers = {key: value for key, value in record.items() if isinstance(value, int | float)}
        self._if_running(lambda run: run.log(numbers, step=step))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Add the figures of the finished run to W&B's summary, and close it as successful.

        wandb's service may still be writing its log for some milliseconds after this returns.
        """
        self._if_running(lambda run: run.summary.update(dict(summary)))
        self._close(exit_code=0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(exit_code=1)  # only a run that `finish` did not close is still open here

    def _close(self, exit_code: int) -> None:
        self._if_running(lambda run: run.finish(exit_code=exit_code))
        self._run = None

    def _if_running(self, action: Callable[[Any], object]) -> None:
        if self._run is not None:
            self._guarded(lambda: action(self._run))

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            self._run = None
            _warn(f"W&B mirror switched off: {type(error).__name__}: {error}")

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)  # wandb would go elsewhere without a word
        if self.config.wandb == "online" and self._start_online():
            return
        self._run = self._init("offline")

    def _start_online(self) -> bool:
        import wandb

        reason = "no API key"
        if wandb.login(prompt=False, verify=False):
            try:
                self._run = self._init("online")
                return True
            except wandb.errors.Error as error:
                reason = str(error).splitlines()[0]
        _warn(f"W&B goes offline ({reason}); to upload later: wandb login, wandb sync <run>/wandb/offline-run-*")
        return False

    def _init(self, mode: str) -> Any:
        import wandb

        return wandb.init(
            mode=mode,  # type: ignore[arg-type]
            dir=str(self.folder),
            name=self.cell_name,
            id=self.run_id,
            resume="allow" if self.run_id else None,
            project=self.config.project,
            entity=self.config.entity,
            group=self.config.group,
            tags=self.config.tags,
            config=dict(self.run_config),
            reinit="create_new",  # one run per cell, however many cells a process runs
            settings=_settings(),
        )


def _settings() -> Any:
    """Quiet, bounded in time, and without the machine's and the user's name."""
    import wandb

    return wandb.Settings(
        console="off",
        silent=True,
        init_timeout=INIT_TIMEOUT_S,
        finish_timeout=FINISH_TIMEOUT_S,
        disable_git=True,
        disable_code=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )


def _warn(message: str) -> None:
    print(f"fedbench: {message}", file=sys.stderr)
