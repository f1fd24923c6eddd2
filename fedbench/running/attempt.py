"""One cell of many: an error ends it alone, and stands in its run directory."""

import traceback
from collections.abc import Generator
from typing import Any, NamedTuple

from fedbench import stopping
from fedbench.config import Config
from fedbench.errors import UserError, is_out_of_memory, memory_words
from fedbench.escaping import printable
from fedbench.federation.experiment import prepare
from fedbench.masking import shareable
from fedbench.running.cell import Outcome, cell_rounds, identity, outcome_of
from fedbench.running.isolation import isolated
from fedbench.tracking.run_directory import ERROR, RunDirectory


class Task(NamedTuple):
    """A cell that was checked: its configuration, hash and run directory."""

    config: Config
    cell_hash: str
    directory: RunDirectory

    @property
    def name(self) -> str:
        """Of the run directory."""
        return self.directory.path.name


def attempt(task: Task) -> Outcome:
    """Run a cell; an error ends this cell alone, and stands in its run directory."""
    return outcome_of(attempt_rounds(task))


def attempt_rounds(task: Task) -> Generator[dict[str, Any], None, Outcome]:
    """The same, round by round, see `cell_rounds`."""
    try:
        with isolated(task.config.seed):
            return (yield from _rounds(task))
    except stopping.StoppedError:
        return Outcome("stopped", "was stopped; the same command goes on after its last whole round")
    except UserError as error:
        return failed(task, str(error), str(error))
    except (Exception, SystemExit) as error:  # a plugin may call `sys.exit`, or `os._exit`
        words = f"{type(error).__name__}: {error}"
        is_memory = isinstance(error, Exception) and is_out_of_memory(error)
        return failed(task, memory_words(error) if is_memory else words, traceback.format_exc())


def _rounds(task: Task) -> Generator[dict[str, Any], None, Outcome]:
    if stopping.is_asked():
        raise stopping.StoppedError
    experiment = prepare(task.config, tried=True)
    if identity(experiment) != task.cell_hash:
        raise UserError("a plugin's files or the data changed since the grid began; allowed: to begin it again")
    return (yield from cell_rounds(experiment, task.directory.path.parent))


def failed(task: Task, words: str, text: str) -> Outcome:
    """Leave `text` in the run directory; the first line of `words` is what is told."""
    words, text = shareable(words), shareable(text)
    first = printable((words.splitlines() or ["for no reason given"])[0])
    try:
        task.directory.fail(f"{text.rstrip()}\n")
    except OSError as error:
        return Outcome("failed", f"FAILED, {first} ({ERROR} could not be written: {error})")
    return Outcome("failed", f"FAILED, {first} (see {task.directory.path / ERROR})")
