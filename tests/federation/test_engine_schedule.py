"""The order in which visits are given to workers, and handed on."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from fedbench.federation.engines import schedule
from fedbench.federation.engines.schedule import Arrival, Death, scheduled


@dataclass
class Result:
    """In place of an upload."""

    visit: int
    deaths: int = 0


@dataclass
class Workers:
    """A crew whose visits take as long as their effort; `dies`: how often over which visit."""

    size: int
    dies: dict[int, int] = field(default_factory=dict)
    late: int = 0  # workers that become ready only once another has answered
    failing: int = 0  # of their starts fail
    begun: list[int] = field(default_factory=list)
    now: float = 0.0
    ends: dict[int, tuple[float, Any]] = field(default_factory=dict)

    def ready(self) -> Collection[int]:
        return range(self.size - self.late)

    def begin(self, worker: int, visit: Any) -> None:
        assert worker not in self.ends
        self.begun.append(visit.client)
        self.ends[worker] = (self.now + visit.effort, visit)

    def answers(self, busy: Collection[int], wait: bool = True) -> Iterator[tuple[int, Any]]:
        assert set(busy) == self.ends.keys()
        if not wait:
            return
        if self.late and self.failing:
            self.failing -= 1
            yield self.size - 1, Death("at its start")
            return
        if self.late:
            self.late -= 1
            yield self.size - 1 - self.late, Arrival()
            return
        worker = min(self.ends, key=lambda one: self.ends[one][0])
        self.now, visit = self.ends.pop(worker)
        left = self.dies.get(visit.client, 0)
        self.dies[visit.client] = left - 1
        yield worker, Death("by a test") if left > 0 else Result(visit.client)


EFFORT: Any = SimpleNamespace(of=lambda visit: visit.effort)


def visits(*efforts: float, num_bytes: int = 1, drawn: list[int] | None = None) -> Iterator[Any]:
    for client, effort in enumerate(efforts):
        if drawn is not None:
            drawn.append(client)
        shipment = SimpleNamespace(num_bytes=num_bytes)
        yield SimpleNamespace(client=client, effort=effort, download=shipment, upload=None, round_index=7)


def test_the_costliest_visits_begin_first_and_all_are_handed_on_in_their_order() -> None:
    crew = Workers(2)
    handed = [(visit.client, result.visit) for visit, result in scheduled(visits(1, 5, 2, 5, 1), crew, EFFORT)]
    assert crew.begun == [1, 3, 2, 0, 4]
    assert handed == [(number, number) for number in range(5)]


def test_a_worker_that_has_answered_is_given_work_before_its_update_is_taken() -> None:
    crew = Workers(2)
    for number, _ in enumerate(scheduled(visits(*[1] * 6), crew, EFFORT), 1):
        assert len(crew.begun) == min(6, number + 2)


def test_a_long_visit_at_the_end_of_a_round_is_not_left_to_the_end() -> None:
    crew = Workers(2)
    list(scheduled(visits(1, 1, 1, 1, 4), crew, EFFORT))
    assert crew.now == 4  # in order it would be 6


def test_no_more_is_drawn_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "ROOM", 60)
    drawn: list[int] = []
    crew = Workers(2)
    for visit, _ in scheduled(visits(*[1] * 30, num_bytes=10, drawn=drawn), crew, EFFORT):
        assert len(drawn) - visit.client <= 6  # of 10 bytes each
    assert crew.begun == list(range(30))


def test_large_visits_are_drawn_two_for_each_worker() -> None:
    drawn: list[int] = []
    for visit, _ in scheduled(visits(*[1] * 12, num_bytes=1 << 40, drawn=drawn), Workers(3), EFFORT):
        assert len(drawn) - visit.client <= 6


def test_a_visit_over_which_a_worker_died_is_trained_by_the_next_and_says_so() -> None:
    handed = list(scheduled(visits(1, 1, 1, 1), Workers(2, dies={1: 2, 3: 1}), EFFORT))
    assert [(visit.client, result.deaths) for visit, result in handed] == [(0, 0), (1, 2), (2, 0), (3, 1)]


def test_the_third_death_over_one_client_ends_the_round() -> None:
    with pytest.raises(RuntimeError, match="round 7: 3 worker processes died over client 1, the last by a test"):
        list(scheduled(visits(1, 1, 1, 1), Workers(2, dies={1: 3}), EFFORT))


def test_workers_that_are_not_there_yet_are_waited_for() -> None:
    crew = Workers(2, late=2)
    assert len(list(scheduled(visits(1, 2, 3), crew, EFFORT))) == 3


def test_workers_that_die_before_they_arrive_are_waited_for_twice() -> None:
    assert len(list(scheduled(visits(1, 2, 3), Workers(2, late=2, failing=2), EFFORT))) == 3
    with pytest.raises(RuntimeError, match=r"3 workers in a row died .*, the last at its start"):
        list(scheduled(visits(1, 2, 3), Workers(2, late=2, failing=3), EFFORT))
