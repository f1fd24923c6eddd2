"""Who is best within a budget: the highest accuracy among the rows that cost no more of a resource."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any

from fedbench.reporting.leaderboard import percent
from fedbench.reporting.paired import is_better
from fedbench.reporting.pareto import PANELS, Panel, competes, like_measured
from fedbench.reporting.ranking import Row, row_name, top1_of
from fedbench.tables import number

DIGITS = 3  # of a budget
BUDGET_NOTE = (
    "A budget is what some row of the table costs one client (of all: every client and the server), rounded up to "
    "three digits. Best: the highest mean top-1 among the rows within it, then those from which the paired "
    "interval does not separate it; a run that diverged or is not above the untrained floor is never best, and "
    "points of reference do not take part."
)


@dataclass(frozen=True)
class Answer:
    """The best rows of a table within a budget.

    Attributes:
        panel: the resource and its unit.
        source: how it was measured; only for memories of several meters, which are not compared, else "".
        limit: the budget in the panel's unit.
        within: how many rows cost no more.
        best: the one of them with the highest mean accuracy, then those that are not separated from it; none if
            all within diverged or are no better than the untrained encoder.
    """

    panel: Panel
    source: str
    limit: float
    within: int
    best: tuple[Row, ...]

    @property
    def budget(self) -> str:
        """In words: `5.25 MB upload`."""
        words = f"{number(self.limit)} {self.panel.unit} {self.panel.name}"
        return f"{words} ({self.source})" if self.source else words


def iso_budgets(rows: Sequence[Row]) -> list[Answer]:
    """For each resource, and each level that it costs some row of the table, who is best within it."""
    return [answer for panel in PANELS for answer in _answers(rows, panel)]


def _answers(rows: Sequence[Row], panel: Panel) -> Iterator[Answer]:
    groups = like_measured(rows, panel)
    for group in groups:
        source = max(row.memory_source for row in group) if len(groups) > 1 else ""
        for limit in levels(group, panel):
            yield Answer(panel, source, limit, len(within(group, panel, limit)), best_within(group, panel, limit))


def budget_line(answer: Answer, rows: Sequence[Row]) -> tuple[str, str, str, str]:
    """The budget, who is best within it, how good that is, and how many rows are within."""
    best = ", ".join(row_name(row, rows) for row in answer.best) or "nobody is above the floor"
    scores = dict.fromkeys(percent(row.top1_mean, row.top1_std) for row in answer.best)
    competing = sum(not row.reference for row in rows)
    return answer.budget, best, ", ".join(scores), f"{answer.within} of {competing}"


def levels(rows: Sequence[Row], panel: Panel) -> list[float]:
    """The distinct costs of the rows in the panel's unit, rounded up to three digits: each fits what it names."""
    return sorted({_rounded_up(panel.cost(row)) for row in rows})


def within(rows: Sequence[Row], panel: Panel, limit: float) -> list[Row]:
    """Rows that cost no more than the limit, in the panel's unit."""
    return [row for row in rows if _clean(panel.cost(row)) <= _clean(limit)]


def best_within(rows: Sequence[Row], panel: Panel, limit: float) -> tuple[Row, ...]:
    """The most accurate row within the limit, then those that are not separated from it, by their means."""
    sound = [row for row in within(rows, panel, limit) if competes(row)]
    ordered = sorted(sound, key=lambda row: -row.top1_mean)
    return tuple(row for row in ordered if not is_better(top1_of(ordered[0]), top1_of(row)))


def choices(rows: Sequence[Row]) -> dict[str, Any]:
    """For the page, which answers what a reader asks: costs in the panels' units, and what intervals separate.

    `better_than` holds the positions, in these rows, of those that the paired interval puts below a row.
    """
    sound = [row for row in rows if competes(row) and not row.reference]
    return {
        "budgets": [{"field": panel.field, "name": _asked(rows, panel)} for panel in PANELS],
        "rows": [
            {
                "name": row_name(row, rows),
                "mean": row.top1_mean,
                "top1": percent(row.top1_mean, row.top1_std),
                "costs": {panel.field: _known_cost(row, panel) for panel in PANELS},
                "better_than": [at for at, other in enumerate(sound) if is_better(top1_of(row), top1_of(other))],
            }
            for row in sound
        ],
    }


def _asked(rows: Sequence[Row], panel: Panel) -> str:
    several = len(like_measured(rows, panel)) > 1
    return f"{panel.label}, by several meters" if several else panel.label


def _known_cost(row: Row, panel: Panel) -> float | None:
    """In the panel's unit; None where the run did not note it, so that it is within no budget."""
    return None if getattr(row, panel.field) is None else float(_clean(panel.cost(row)))


def _rounded_up(cost: float) -> float:
    exact = _clean(cost)
    step = Decimal(1).scaleb(max(exact.adjusted() - DIGITS + 1, -12)) if exact < 1000 else Decimal(1)
    return float(exact.quantize(step, ROUND_CEILING))


def _clean(cost: float) -> Decimal:
    """Without the last bits, which a mean over seeds may leave behind."""
    return Decimal(f"{cost:.12g}")
