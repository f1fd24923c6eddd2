"""Cells as Ray tasks: Ray places them, this process takes what they send and begins again those that were lost.

A task is a generator: it sends a message when it begins and after every round. It runs in the folder of results
where its node sees that, else in a folder of its node's own, from which this process fetches what changed.
"""

import os
import pickle
import secrets
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from socket import gethostname
from typing import Any, NamedTuple, TypeVar

from fedbench import stopping
from fedbench.errors import UserError
from fedbench.files import exclusive, locked, write_atomically
from fedbench.metering.costs import StepCosts
from fedbench.numerics import PORTABLE
from fedbench.ray_cluster import connected
from fedbench.running.attempt import Task, attempt_rounds, failed
from fedbench.running.cell import Outcome
from fedbench.running.cluster import differences, installed
from fedbench.running.fetched import Change, Outgoing, apply, contents, names_in, scratch, unpack
from fedbench.running.needs import Needs, needs
from fedbench.tracking.progress import Progress
from fedbench.tracking.run_directory import RunDirectory

DEATHS = 3  # of workers or nodes in a row, without a round between: then it is the cell's doing
LEASE_S = 120.0  # that a file server takes to free what a dead node has locked; NFS: 90
AHEAD = 2  # messages of a cell that wait to be taken before it goes on
LAST_S = 5.0  # that cells have to end when they are ended
LOOK_S = 0.5  # between two looks whether to stop
SEEN = ".seen-"  # how the names of the files begin by which nodes see the folder
R = TypeVar("R")
STOPPED = Outcome("stopped", "was stopped; the same command goes on after its last whole round")


class Shared(NamedTuple):
    """How a node tells whether it sees the folder of results: there is a file, and a word in it."""

    marker: Path
    word: str

    def is_seen(self) -> bool:
        """From here."""
        with suppress(OSError):
            return self.marker.read_text(encoding="utf-8") == self.word
        return False


class Arrived(NamedTuple):
    """The first message: the cell begins, on that node."""

    node: str
    sees_folder: bool


class Refused(NamedTuple):
    """The last message of a cell that was not begun."""

    why: str


class Round(NamedTuple):
    """A round is on the disk."""

    changes: Sequence[Change]


class Ended(NamedTuple):
    """The last message."""

    outcome: Outcome
    changes: Sequence[Change]


Message = Arrived | Refused | Round | Ended


@dataclass(eq=False)
class Turn:
    """A cell on its way.

    Attributes:
        deaths: in a row.
        seed: what there is of its run directory, in Ray's store, where a node asked for that.
        node: where it runs; "" as long as it waits for its turn.
        is_at_end: it has nothing more to send.
        ends: has the lock of a folder that the node does not see.
    """

    task: Task
    needs: Needs
    deaths: int = 0
    seed: Any = None
    node: str = ""
    is_at_end: bool = False
    ends: ExitStack = field(default_factory=ExitStack)


def on_ray(tasks: Sequence[Task], out: Path, progress: Progress, address: str) -> Iterator[tuple[Task, Outcome]]:
    """Run the cells on the cluster at `address`; yields them in the order in which they end.

    Raises:
        UserError: there is no such cluster, or a cell cannot say what it needs.
    """
    costs = StepCosts()
    turns = [Turn(task, needs(task.config, costs)) for task in tasks]
    with connected(address, max(turn.needs.cpus for turn in turns)) as ray, _marked(out) as shared:
        cells = Cells(ray, shared)
        progress.running = lambda: {turn.task.name for turn in cells.turns.values() if turn.node}
        progress.nodes = lambda: {turn.task.name: turn.node for turn in cells.turns.values() if turn.node}
        _warn(ray, turns)
        try:
            for turn in turns:
                cells.begin(turn)
            yield from cells.outcomes()
        finally:
            cells.end()


@contextmanager
def _marked(out: Path) -> Iterator[Shared]:
    """Nodes that see the folder find a file in it, as long as the block runs; what a kill left there goes."""
    word = secrets.token_hex(16)
    marker = out.absolute() / f"{SEEN}{word[:8]}"
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(f"{SEEN}*"):
        with locked(left) as is_nobodys:
            if is_nobodys:
                left.unlink(missing_ok=True)
    write_atomically(marker, word.encode())
    try:
        with locked(marker):
            yield Shared(marker, word)
    finally:
        marker.unlink(missing_ok=True)


def _warn(ray: Any, turns: Sequence[Turn]) -> None:
    """Of cells that no node has room for: they wait for one that has."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for cpus, gpus in sorted({turn.needs for turn in turns}):
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            gpu = f" and {gpus:g} of a GPU" if gpus else ""
            print(f"fedbench: no node has {cpus} CPUs{gpu}; the cells that need them wait", file=sys.stderr)


class Cells:
    """Those on their way, by what Ray calls them."""

    def __init__(self, ray: Any, shared: Shared) -> None:
        self.ray, self.shared = ray, shared
        self.turns: dict[Any, Turn] = {}  # the one that was heard of last is last
        self._run = ray.remote(run_on_node)
        self._installed, self._folder = installed(), Path.cwd()
        errors = ray.exceptions
        died = (
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.LocalRayletDiedError,
            errors.OutOfMemoryError,
        )
        self._lost = (*died, errors.ObjectLostError)

    def begin(self, turn: Turn) -> None:
        """Let Ray run it, when a node has room."""
        turn.ends.close()
        turn.node, turn.ends = "", ExitStack()
        task = turn.task._replace(directory=RunDirectory(turn.task.directory.path.absolute()))
        options = {
            "num_returns": "streaming",
            "num_cpus": turn.needs.cpus,
            "num_gpus": turn.needs.gpus,
            "max_retries": 0,  # what it sent is not sent again: it goes on from there
            "name": task.name,
            "_generator_backpressure_num_objects": AHEAD,
        }
        if task.config.numerics:
            options["runtime_env"] = {"env_vars": PORTABLE}
        stream = self._run.options(**options).remote(
            pickle.dumps(task),
            self._installed,
            self._folder,
            self.shared,
            patience=LEASE_S if turn.deaths else 0,
            held=any(names_in(task.directory.path)),
            seed=turn.seed,
        )
        self.turns[stream] = turn

    def outcomes(self) -> Iterator[tuple[Task, Outcome]]:
        """Take what they send until all have ended, or were ended because we are to stop."""
        while self.turns:
            if stopping.is_asked():
                waiting = [stream for stream, turn in self.turns.items() if not turn.node]
                yield from [self._over(stream, STOPPED) for stream in waiting]
            ready, _ = self.ray.wait(list(self.turns), timeout=LOOK_S) if self.turns else ([], [])
            for stream in ready:
                turn = self.turns[stream] = self.turns.pop(stream)
                outcome = self._hear(stream, turn)
                if outcome is not None:
                    yield self._over(stream, outcome)
                elif stopping.is_asked() and stream in self.turns:
                    yield self._over(stream, STOPPED)

    def _over(self, stream: Any, outcome: Outcome) -> tuple[Task, Outcome]:
        turn = self.turns.pop(stream)
        if not turn.is_at_end:
            self.ray.cancel(stream, force=True)
        turn.ends.close()
        return turn.task, outcome

    def _hear(self, stream: Any, turn: Turn) -> Outcome | None:
        """Take one message of a cell; how it ended, if it did."""
        try:
            return self._take(turn, self.ray.get(next(stream)))
        except StopIteration:  # it has nothing to go on from, and asks for it
            turn.seed = [self.ray.put(contents(turn.task.directory.path))]  # in a list: who needs it fetches it
            self._again(stream)
            return None
        except self._lost as error:
            return self._died(stream, turn, error)
        except self.ray.exceptions.RayError as error:  # the task could not be started, or fell over our own code
            cause = getattr(error, "cause", None) or error
            return failed(turn.task, f"on {turn.node or 'a node'}: {type(cause).__name__}: {cause}", str(error))
        except (UserError, OSError) as error:
            return failed(turn.task, str(error), f"What the node sent could not be kept: {error}")

    def _take(self, turn: Turn, message: Message) -> Outcome | None:
        match message:
            case Arrived(node, sees_folder):
                turn.node = node
                if not sees_folder and not turn.ends.enter_context(exclusive(turn.task.directory.path)):
                    return Outcome("elsewhere", "is being run by another process")
            case Refused(why):
                turn.is_at_end = True
                return failed(turn.task, f"{turn.node} {why}", f"A node {why}")
            case Round(changes):
                apply(changes, turn.task.directory.path)
                turn.deaths = 0
            case Ended(outcome, changes):
                turn.is_at_end = True
                apply(changes, turn.task.directory.path)
                return outcome
        return None

    def _died(self, stream: Any, turn: Turn, error: Exception) -> Outcome | None:
        """A worker or a node died: the cell is begun again, unless that has happened too often."""
        if stopping.is_asked():
            return STOPPED
        turn.deaths += 1
        is_memory = isinstance(error, self.ray.exceptions.OutOfMemoryError)
        how, where = "memory ran out" if is_memory else "its worker died", turn.node or "a node"
        if turn.deaths == DEATHS:
            text = f"{how} {DEATHS} times without a round between"
            return failed(turn.task, f"{text}, the last time on {where}", f"{text}\n{error}")
        print(f"fedbench: {turn.task.name}: {how} on {where}; it goes on after its last round", file=sys.stderr)
        turn.seed = None
        self._again(stream)
        return None

    def _again(self, stream: Any) -> None:
        self.begin(self.turns.pop(stream))

    def end(self) -> None:
        """End what is left, at once; it is given some seconds to be gone."""
        for stream, turn in self.turns.items():
            with suppress(self.ray.exceptions.RayError):
                self.ray.cancel(stream, force=True)
            turn.ends.close()
        if self.turns:
            self.ray.wait(list(self.turns), num_returns=len(self.turns), timeout=LAST_S)


def run_on_node(
    pickled: bytes,
    ours: Mapping[str, str | None],
    folder: Path,
    shared: Shared,
    patience: float,
    held: bool,
    seed: Sequence[Any] | None,
) -> Iterator[Message]:
    """A cell, on the node that Ray chose.

    Args:
        pickled: the task; it is not looked at where another fedbench is installed.
        ours: what is `installed` where the command runs, in `folder`.
        patience: seconds in which a dead process's lock may be freed.
        held: whether there is something of the run to go on from.
        seed: holds what that is, where it was asked for.
    """
    sees_folder = shared.is_seen()
    yield Arrived(gethostname(), sees_folder)
    if wrong := differences(installed(), ours):
        yield Refused(f"has other software: {wrong}; allowed: the same on every node")
        return
    with suppress(OSError):  # names of files in a configuration may begin there
        os.chdir(folder)
    task: Task = pickle.loads(pickled)
    if sees_folder:
        _wait(task.directory.path, patience)
        outcome = yield from _each(attempt_rounds(task), lambda: Round([]))
        yield Ended(outcome, [])
    elif not held or seed is not None:
        yield from _away(task, seed)


def _wait(folder: Path, patience: float) -> None:
    """Until nobody has the lock of `folder`, or the patience ends."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        with exclusive(folder) as is_free:
            if is_free:
                return
        time.sleep(LOOK_S)


def _each(rounds: Generator[Any, None, R], message: Any) -> Generator[Message, None, R]:
    """A message for each round."""
    while True:
        try:
            next(rounds)
        except StopIteration as end:
            result: R = end.value
            return result
        yield message()


def _away(task: Task, seed: Sequence[Any] | None) -> Iterator[Message]:
    """The cell in a folder of this machine's own."""
    with scratch() as here:
        path = here / task.name
        if seed is not None:
            import ray

            unpack(ray.get(seed[0]), path)
        outgoing = Outgoing(path)
        rounds = attempt_rounds(task._replace(directory=RunDirectory(path)))
        outcome = yield from _each(rounds, lambda: Round(outgoing.changes()))
        words = outcome.words.replace(str(path), str(task.directory.path))
        yield Ended(outcome._replace(words=words), outgoing.changes(ended=True))
