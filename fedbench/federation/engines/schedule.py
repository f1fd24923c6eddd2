"""Which of several workers trains which visit, and when. Results are handed on in the order of the visits.

A round is drawn ahead as far as there is room for payloads and updates that wait. Of what is drawn the costliest
visit is trained first: a round ends with its last worker, who should not be left alone with a long one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from heapq import heappop, heappush
from typing import NamedTuple, Protocol

from fedbench.federation.client import Upload
from fedbench.federation.engines.effort import Effort
from fedbench.federation.protocol import Visit

DEATHS = 3  # of workers over one client: then it is the client's doing
AHEAD = 2  # visits for each worker that may be drawn and not handed on yet, whatever their size
ROOM = 1 << 28  # bytes of payloads and updates up to which there may be more of them


class Death(NamedTuple):
    """A worker died over its visit; `words`: how."""

    words: str


class Arrival(NamedTuple):
    """A worker is ready to train: it has read code, plugins and data, and they are those of the run."""


class Crew(Protocol):
    """Workers, numbered from 0, each with at most one visit."""

    size: int

    def ready(self) -> Collection[int]:
        """Workers that have arrived."""
        ...

    def begin(self, worker: int, visit: Visit) -> None:
        """Give a ready worker a visit; that it is dead shows in its answer."""
        ...

    def answers(self, busy: Collection[int], wait: bool = True) -> Iterable[tuple[int, Upload | Death | Arrival]]:
        """What came from `busy` workers, or from those that have not arrived; a dead one is replaced.

        `wait`: until there is something.
        """
        ...


def scheduled(visits: Iterable[Visit], crew: Crew, effort: Effort) -> Iterator[tuple[Visit, Upload]]:
    """Have `crew` train all visits.

    Raises:
        RuntimeError: `DEATHS` workers died over one visit, or in a row before they could train.
    """
    todo, num_drawn, turn, held = iter(visits), 0, 0, 0
    drawn = dict[int, Visit]()  # by number; until it is handed on
    waiting: list[tuple[float, int]] = []  # a heap: the costliest first, then in order
    busy, done, deaths = dict[int, int](), dict[int, Upload](), Counter[int]()  # busy: worker -> visit
    failed_starts = 0
    while True:
        while (num_drawn - turn < AHEAD * crew.size or held < ROOM) and (visit := next(todo, None)):
            drawn[num_drawn] = visit
            heappush(waiting, (-effort.of(visit), num_drawn))
            held, num_drawn = held + _size(visit), num_drawn + 1
        for worker in crew.ready():
            if worker not in busy and waiting:
                _, busy[worker] = heappop(waiting)
                crew.begin(worker, drawn[busy[worker]])
        if turn in done:  # one at a time: while it is taken, others answer, and should not wait for work
            visit = drawn.pop(turn)
            held -= _size(visit)
            yield visit, done.pop(turn)
            turn += 1
        if not drawn:
            return
        for worker, answer in crew.answers(busy, wait=turn not in done) if busy or waiting else ():
            if worker not in busy:  # it was on its way
                failed_starts = failed_starts + 1 if isinstance(answer, Death) else 0
                _check_starts(failed_starts, answer)
                continue
            number = busy.pop(worker)
            visit = drawn[number]
            assert not isinstance(answer, Arrival)
            if isinstance(answer, Death):
                deaths[number] += 1
                _check_deaths(visit, deaths[number], answer)
                heappush(waiting, (-effort.of(visit), number))
            else:
                done[number] = replace(answer, deaths=deaths[number])


def _size(visit: Visit) -> int:
    return visit.download.num_bytes + (visit.upload.num_bytes if visit.upload is not None else 0)


def _check_deaths(visit: Visit, deaths: int, last: Death) -> None:
    if deaths == DEATHS:
        raise RuntimeError(
            f"round {visit.round_index}: {DEATHS} worker processes died over client {visit.client}, the last "
            f"{last.words}"
        )


def _check_starts(failed: int, last: object) -> None:
    if failed == DEATHS and isinstance(last, Death):
        raise RuntimeError(f"{DEATHS} workers in a row died before they could train, the last {last.words}")
