"""A grid as an array job of SLURM, through submitit: each part runs `--shard I/N` into the one folder.

A part whose time is over, or whose node is wanted, lets its round end, is queued again and goes on.
"""

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedbench.errors import UserError

LOGS = "slurm"  # folder beside the runs
LAST_S = 60.0  # that a part has to end, beside the grace for the round under way
TIMEOUTS = 1000  # after which a part is not queued again
OURS = ("signal_delay_s",)  # of submitit's options
ENDS_WELL = (0, 3, 4)  # exit codes: a diverged cell is a result, and one elsewhere is somebody's
LOOK_S = 0.2


class Part:
    """One part of a grid, in a process of its own, which is asked to end in time.

    submitit calls it on a node, and `checkpoint` when SLURM says that the node will be taken away.
    """

    def __init__(self, words: Sequence[str], shard: str, folder: Path, grace: float) -> None:
        self.words = [*words, "--shard", shard, "--grace", f"{grace:g}"]
        self.folder, self.grace = folder, grace
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run it. RuntimeError: it did not end well."""
        # SLURM signals all processes of a part; what submitit listens to would end one that does not.
        command = [sys.executable, "-m", "fedbench", "run", *self.words]
        self._process = subprocess.Popen(command, cwd=self.folder, preexec_fn=_ignore_notice)
        code = self._ended(None)
        if code not in ENDS_WELL:
            raise RuntimeError(f"fedbench run {shlex.join(self.words)} ended with exit code {code}")
        return int(code or 0)

    def checkpoint(self) -> Any:
        """Let the round under way end; what is to be queued again."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.terminate()
            if self._ended(self.grace + LAST_S) is None:
                self._process.kill()
        return DelayedSubmission(self)

    def _ended(self, seconds: float | None) -> int | None:
        """The exit code, waited for; `Popen.wait` would bar `checkpoint`, which interrupts it, from waiting."""
        assert self._process is not None
        end = None if seconds is None else time.monotonic() + seconds
        while (code := self._process.poll()) is None and (end is None or time.monotonic() < end):
            time.sleep(LOOK_S)
        return code

    def __getstate__(self) -> dict[str, Any]:
        """A process stays where it is."""
        return {**self.__dict__, "_process": None}


def _ignore_notice() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def parts(words: Sequence[str], shards: int, grace: float) -> list[Part]:
    """Of `fedbench run WORDS`, each to be run in this folder."""
    return [Part(words, f"{index}/{shards}", Path.cwd(), grace) for index in range(1, shards + 1)]


class Launcher:
    """Submits parts as one array job.

    Args:
        options: sbatch's, by submitit's names: `partition`, `time` in minutes, `gpus_per_node`, ...
        grace: see `Part`.

    Raises:
        UserError: submitit is not installed, or has no such option.
    """

    def __init__(self, out: Path, options: Mapping[str, str], grace: float) -> None:
        if find_spec("submitit") is None:
            raise UserError("submit: submitit is not installed; allowed: with pip install 'fedbench[slurm]'")
        from submitit.slurm import slurm

        self._slurm, self._logs = slurm, out.absolute() / LOGS
        allowed = sorted(slurm._get_default_parameters().keys() - set(OURS))
        unknown = sorted(options.keys() - set(allowed))
        if unknown:
            raise UserError(f"--slurm {unknown[0]}={options[unknown[0]]}; allowed: {', '.join(allowed)}")
        values = {name: int(text) if text.isdecimal() else text for name, text in options.items()}
        self._options: dict[str, Any] = {
            "job_name": "fedbench",
            **values,
            "signal_delay_s": int(grace + 2 * LAST_S),
        }

    def script(self, shards: int) -> str:
        """What sbatch is given; it needs no SLURM."""
        command = shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(self._logs)])
        return str(self._slurm._make_sbatch_string(command, self._logs, map_count=shards, **self._options))

    def submit(self, todo: Sequence[Part]) -> str:
        """The number of the job.

        Raises:
            UserError: there is no SLURM here, or it refuses.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            executor = self._slurm.SlurmExecutor(self._logs, max_num_timeout=TIMEOUTS)
            executor.update_parameters(**self._options)
            jobs = executor.submit_array(todo)
        except (RuntimeError, FailedJobError, FailedSubmissionError) as error:
            raise UserError(f"submit: {error}") from error
        return str(jobs[0].job_id).partition("_")[0]
