"""Differences between two rows, seed by seed: two runs of one seed begin alike and have the same clients.

What both owe to their seed cancels out, so that a difference needs fewer seeds than two spreads side by side.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from scipy import stats

LEVEL = 0.95
METHOD = (
    "by the paired difference, the mean over the seeds that both have of one row's top-1 minus the other's, in "
    f"points, with Student's t interval at {LEVEL:.0%} for each pair alone (not corrected for their number); "
    "one seed has none"
)


@dataclass(frozen=True)
class Difference:
    """Mean of the paired differences, and the ends of its confidence interval; fractions of top-1."""

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def is_positive(self) -> bool:
        """Whether the interval lies above zero."""
        return self.low > 0


def paired_difference(one: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """`one` minus `other` over the seeds that both have; None for fewer than two of them.

    Args:
        one, other: top-1 as a fraction, by seed.
    """
    differences = [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
    if len(differences) < 2:
        return None
    mean = fmean(differences)
    error = float(stats.sem(differences))
    reach = error * float(stats.t.ppf((1 + LEVEL) / 2, len(differences) - 1))
    return Difference(mean, mean - reach, mean + reach, len(differences))


def is_better(one: Mapping[int, float], other: Mapping[int, float]) -> bool:
    """Whether the interval of `one` minus `other` lies above zero: only then may it stand before it."""
    found = paired_difference(one, other)
    return found is not None and found.is_positive
