"""Many cells, one after the other, in worker processes or on Ray; one that fails does not stop the rest."""

import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool

from fedbench import stopping
from fedbench.config import Config
from fedbench.errors import UserError
from fedbench.federation.experiment import prepare, tried_before
from fedbench.files import exclusive
from fedbench.reporting.leaderboard import write
from fedbench.reporting.pareto import plot
from fedbench.reporting.ranking import Row, leaderboard
from fedbench.reporting.terminal import show
from fedbench.reporting.wandb_leaderboard import mirror_leaderboard
from fedbench.running.attempt import Task, attempt, failed
from fedbench.running.cell import Outcome, cell_name, identity
from fedbench.running.isolation import told
from fedbench.tracking.progress import Progress
from fedbench.tracking.run_directory import RunDirectory
from fedbench.tracking.runs import read_runs
from fedbench.workers import end_with_parent, worker_context


def prepare_cells(configs: Sequence[Config], out: Path) -> list[Task]:
    """Check every cell before the first one runs. Configurations with the same result are one cell.

    Raises:
        UserError: if any cell cannot be run.
    """
    tasks: dict[str, Task] = {}
    if len({config.numerics for config in configs}) > 1:
        raise UserError("numerics=portable in some cells only; allowed: in all or none, they share a process")
    for config, tried in tried_before(configs):
        with told(config.seed):
            experiment = prepare(config, tried)
        name = cell_name(experiment)
        tasks.setdefault(name, Task(config, identity(experiment), RunDirectory(out / name)))
    return list(tasks.values())


def run_cells(configs: Sequence[Config], out: Path, jobs: int = 1, ray_address: str | None = None) -> Counter[str]:
    """Run what is not finished yet; the leaderboard's files follow, for a twentieth of the time at most.

    At the end it is printed and mirrored to W&B.

    Raises:
        StoppedError: where `stopping` was asked for, after the cells have kept their last whole round.

    Args:
        jobs: cells at a time; with more than one, each in a process of its own.
        ray_address: of the Ray that runs the cells instead, see `fedbench.running.cluster`.

    Returns: how many cells ended in which state, see `Outcome`.
    """
    own = {config.engine for config in configs} - {"in_process"}
    if jobs > 1 and own:
        raise UserError(f"--jobs {jobs} with engine={own.pop()}; allowed: one of them, they share the same cores")
    tasks = prepare_cells(configs, out)
    if not tasks:
        print("fedbench: this part has no cell", file=sys.stderr)
        return Counter()
    _warn_of_threads(tasks, jobs)
    states: Counter[str] = Counter()
    is_stale, next_refresh = False, 0.0
    with Progress([(task.directory, task.cell_hash, task.config.federation.rounds) for task in tasks]) as progress:
        for task, outcome in _ended(tasks, out, progress, jobs, ray_address):
            states[outcome.state] += 1
            done = states.total()
            print(f"[{done}/{len(tasks)}] {task.name}: {outcome.words}", file=sys.stderr)
            is_stale = is_stale or outcome.is_new
            if is_stale and done < len(tasks) and (began := time.monotonic()) >= next_refresh:
                _refresh(out)
                # A table of hundreds of cells takes seconds, which the cells that run would have to wait for.
                is_stale, next_refresh = False, time.monotonic() + 20 * (time.monotonic() - began)
    if stopping.is_asked():
        if is_stale:
            _refresh(out)
        raise stopping.StoppedError
    rows = _refresh(out)
    files = [out / "leaderboard.md", *_page(out)]
    print(show(rows, files, f"Two more, into the same tables: the same command with seed={_other_seeds(configs)}"))
    if rows and configs[0].tracking.wandb != "disabled":
        mirror_leaderboard(read_runs(out), configs[0].tracking, out)
    return states


def _ended(
    tasks: Sequence[Task], out: Path, progress: Progress, jobs: int, ray_address: str | None
) -> Iterator[tuple[Task, Outcome]]:
    """Run the cells; yields each when it has ended."""
    if ray_address is not None:
        from fedbench.running.ray_cells import on_ray  # Ray is asked for by few

        return on_ray(tasks, out, progress, ray_address)
    return _one_by_one(tasks, progress) if jobs == 1 else _in_workers(tasks, progress, jobs)


def _refresh(out: Path) -> list[Row]:
    """Write the leaderboard of all finished runs in `out`, whoever ran them; what a full disk refuses is told."""
    rows = leaderboard(read_runs(out))
    try:
        with exclusive(out, wait=True):
            write(rows, out)
            plot(rows, out / "pareto.png")
    except OSError as error:
        print(f"fedbench: the leaderboard's files could not be written: {error}", file=sys.stderr)
    return rows


def _page(out: Path) -> list[Path]:
    """Write the report's page beside the leaderboard, and say where it is; none where there is no finished run."""
    from fedbench.reporting.report import write_page  # Bokeh takes its time to import

    try:
        return [path] if (path := write_page([out], out)) else []
    except OSError as error:
        print(f"fedbench: the page could not be written: {error}", file=sys.stderr)
        return []


def _other_seeds(configs: Sequence[Config]) -> str:
    """Two that are not among those of the cells."""
    last = max(config.seed for config in configs)
    return f"{last + 1},{last + 2}"


def _warn_of_threads(tasks: Sequence[Task], jobs: int) -> None:
    threads, cores = max(task.config.threads for task in tasks), len(os.sched_getaffinity(0))
    if jobs > 1 and jobs * threads > cores:
        print(
            f"fedbench: {jobs} jobs of {threads} threads share {cores} cores and hinder each other; threads="
            f"{max(1, cores // jobs)} would not (threads are part of a cell, they reach its last bits)",
            file=sys.stderr,
        )


def _one_by_one(tasks: Sequence[Task], progress: Progress) -> Iterator[tuple[Task, Outcome]]:
    for task in tasks:
        if stopping.is_asked():
            return
        progress.running = {task.name}.copy
        yield task, attempt(task)


def _begin_worker(asked: Any) -> None:
    end_with_parent()
    stopping.listen_in_worker(asked)


def _in_workers(tasks: Sequence[Task], progress: Progress, jobs: int) -> Iterator[tuple[Task, Outcome]]:
    """In the order in which they end. A worker that dies fails its cell and is replaced."""
    workers = min(jobs, len(tasks))
    context = worker_context()
    asked = context.Event()
    pool = ProcessPool(max_workers=workers, context=context, initializer=_begin_worker, initargs=[asked])
    stopping.pass_on(asked)
    ended = False
    try:
        futures: dict[Future[Outcome], Task] = {pool.schedule(attempt, args=[task]): task for task in tasks}
        progress.running = lambda: {task.name for future, task in futures.items() if future.running()}
        for future in as_completed(futures):
            task = futures[future]
            try:
                yield task, future.result()
            except ProcessExpired as error:
                text = f"its process died, exit code {error.exitcode}"
                killed = "; -9 is a kill, as when memory runs out" if error.exitcode == -9 else ""
                yield task, failed(task, text, text + killed)
        pool.close()
        ended = not stopping.is_asked()
    finally:
        if not ended:
            for worker in multiprocessing.active_children():
                worker.kill()  # the pool would send SIGTERM, and wait for their rounds
        pool.stop()
        pool.join()
