"""Mine keeps to what every strategy must keep to."""

from pathlib import Path

from fedbench.conformance.report import check_strategy, plan_faults

FILE = str(Path(__file__).with_name("mine.py"))


def test_its_plan_sends_back_what_it_trains() -> None:
    assert plan_faults(FILE) == []


def test_it_does_what_it_plans_and_every_byte_is_counted() -> None:
    assert [row for row in check_strategy(FILE) if row[2] is not None] == []
