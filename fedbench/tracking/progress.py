"""A live table of cells, in a terminal: what each one is at, read from its run directory."""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

from fedbench.tracking.run_directory import ERROR, RunDirectory

ORDER = ("running", "failed", "unreadable", "finished", "waiting")
AROUND = 6  # lines of a terminal that the table's frame and caption take
RECENT = 5  # rounds whose mean time predicts the rest


@dataclass(frozen=True)
class CellState:
    """What a cell is at.

    Attributes:
        state: one of `ORDER`.
        rounds_done: of `rounds`.
        top1: the last figure of the first protocol, a fraction, and that protocol; None if there was none.
        seconds_left: of its rounds, if it is running and has done one.
    """

    name: str
    state: str
    rounds_done: int
    rounds: int
    loss: float | None = None
    top1: tuple[str, float] | None = None
    seconds_left: float | None = None


def look(directory: RunDirectory, cell_hash: str, rounds: int, running: bool) -> CellState:
    """The state of a cell as its files tell it; `unreadable` where they tell nothing."""
    try:
        return _look(directory, cell_hash, rounds, running)
    except (OSError, ValueError, KeyError, TypeError):
        return CellState(directory.path.name, "unreadable", 0, rounds)


def _look(directory: RunDirectory, cell_hash: str, rounds: int, running: bool) -> CellState:
    name = directory.path.name
    if directory.is_finished(cell_hash):
        return CellState(name, "finished", rounds, rounds, top1=last_top1([directory.summary()]))
    records = directory.rounds()
    state = "running" if running else "failed" if (directory.path / ERROR).is_file() else "waiting"
    if not records:
        return CellState(name, state, 0, rounds)
    pace = fmean(record["seconds/round"] + record.get("seconds/evaluation", 0) for record in records[-RECENT:])
    left = pace * (rounds - len(records)) if running else None
    return CellState(name, state, len(records), rounds, records[-1]["train/loss"], last_top1(records), left)


def last_top1(records: Sequence[Mapping[str, Any]]) -> tuple[str, float] | None:
    """Protocol and value of the newest top-1; of several protocols, the first."""
    keys = [(key, one[key]) for one in reversed(records) for key in one if re.fullmatch(r"probe/\w+_top1", key)]
    return (keys[0][0].removeprefix("probe/").removesuffix("_top1"), keys[0][1]) if keys else None


class Progress:
    """Shows the table while its block runs; nothing where the error stream is no terminal.

    Attributes:
        running: tells the names of the cells that are being run at the moment.
        nodes: tells the machines that some of them run on, by name.
    """

    def __init__(self, cells: Sequence[tuple[RunDirectory, str, int]], console: Console | None = None) -> None:
        self.running: Callable[[], set[str]] = set
        self.nodes: Callable[[], Mapping[str, str]] = dict
        self._cells = {
            directory.path.name: (directory, cell_hash, rounds) for directory, cell_hash, rounds in cells
        }
        self._finished: dict[str, CellState] = {}  # these change no more
        self._console = console or Console(file=sys.stderr)
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(
                console=self._console, get_renderable=self.table, refresh_per_second=1, transient=True
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def states(self) -> Iterator[CellState]:
        """Of all cells, in the order of the grid."""
        running = self.running()
        for name, cell in self._cells.items():
            state = self._finished.get(name) or look(*cell, running=name in running)
            if state.state == "finished":
                self._finished[name] = state
            yield state

    def table(self) -> Table:
        """As many cells as the terminal has room for, those that matter most first."""
        states = list(self.states())
        counts = Counter(state.state for state in states)
        caption = ", ".join(f"{counts[word]} {word}" for word in ORDER if counts[word])
        table = Table(caption=caption, caption_justify="left", box=SIMPLE_HEAD)
        table.add_column("cell", overflow="ellipsis", no_wrap=True, ratio=1)
        table.add_column("state")
        nodes = self.nodes()
        for heading in ("round", "loss", "top-1 %", "left"):
            table.add_column(heading, justify="right", no_wrap=True)
        for state in sorted(states, key=lambda one: ORDER.index(one.state))[
            : max(1, self._console.height - AROUND)
        ]:
            table.add_row(*row(state, nodes.get(state.name, "")))
        return table


def row(state: CellState, node: str = "") -> tuple[str, ...]:
    """The words of a line; what is not known is left empty."""
    return (
        state.name,
        f"{state.state} on {node}" if node else state.state,
        f"{state.rounds_done}/{state.rounds}",
        "" if state.loss is None else f"{state.loss:.3f}",
        "" if state.top1 is None else f"{state.top1[0]} {100 * state.top1[1]:.1f}",
        "" if state.seconds_left is None else duration(state.seconds_left),
    )


def duration(seconds: float) -> str:
    """`2:05:09`, or `5:09` within an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
