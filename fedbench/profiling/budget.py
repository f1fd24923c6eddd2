"""Budgets: does a configuration fit, and if not, which stage and which term breaks it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from fedbench.profiling.profile import Number, Profile, StageProfile
from fedbench.tables import bullets, markdown, number


@dataclass(frozen=True)
class Verdict:
    """One resource of one strategy. `breaks` says which stage and term exceed the budget; "" if it fits."""

    resource: str
    needed: Number
    limit: float
    breaks: str


def verdicts(one: Profile, budgets: Mapping[str, float]) -> list[Verdict]:
    """One for each budget."""
    kinds = {"memory": _memory, "total_flops": _total}
    return [
        kinds[name](one, limit) if name in kinds else _sum(one, name, limit) for name, limit in budgets.items()
    ]


def _memory(one: Profile, limit: float) -> Verdict:
    worst = max(one.stages, key=lambda stage: stage.peak_memory_bytes)
    first = next((stage for stage in one.stages if stage.peak_memory_bytes > limit), worst)
    breaks = ""
    if worst.peak_memory_bytes > limit:
        breaks = f"stage {first.stage}: {_largest(first.memory, first.peak_memory_bytes)}"
    return Verdict("memory", worst.peak_memory_bytes, limit, breaks)


def _total(one: Profile, limit: float) -> Verdict:
    """Of everybody over the whole run; what breaks it is whoever does most."""
    shares = {"clients": one.total_flops - one.server_flops, "server": one.server_flops}
    breaks = _largest(shares, one.total_flops) if one.total_flops > limit else ""
    return Verdict("total_flops", one.total_flops, limit, breaks)


def _sum(one: Profile, resource: str, limit: float) -> Verdict:
    """Totals over the run: the stage is the one in which the running total crosses the budget."""
    values = [_value(stage, resource) for stage in one.stages]
    running = list(accumulate(values))
    if running[-1] <= limit:
        return Verdict(resource, running[-1], limit, "")
    crossing = next(number for number, total in enumerate(running) if total > limit)
    stage = one.stages[crossing]
    terms = stage.flops_by_phase if resource == "flops" else getattr(stage, resource)
    return Verdict(resource, running[-1], limit, f"stage {stage.stage}: {_largest(terms, sum(terms.values()))}")


def _value(stage: StageProfile, resource: str) -> Number:
    return stage.flops["step"] if resource == "flops" else getattr(stage, f"{resource}_bytes")["step"]


def _largest(terms: Mapping[str, Number], whole: Number) -> str:
    name = max(terms, key=lambda term: terms[term])
    return f"{name} ({terms[name] / whole:.0%} of it)"


def render_budgets(profiles: Sequence[Profile], budgets: Mapping[str, float]) -> str:
    """A line for each strategy and budget."""
    rows = [
        [
            one.strategy,
            verdict.resource,
            _shown(verdict.resource, verdict.limit),
            _shown(verdict.resource, verdict.needed),
            f"NO, {verdict.breaks}" if verdict.breaks else "fits",
        ]
        for one in profiles
        for verdict in verdicts(one, budgets)
    ]
    table = markdown(["strategy", "resource", "budget", "needed", "verdict"], rows, left=2)
    notes = bullets(
        "Convention `step`; memory: the highest peak; the others: totals of one client over the whole run; "
        "total_flops: of all clients and the server.",
        "NO: the first stage that exceeds the budget (of a total: in which it is used up), and its largest term.",
    )
    return f"{table}\n\n{notes}"


def _shown(resource: str, value: float) -> str:
    return f"{number(value / 1e9)} GFLOPs" if resource.endswith("flops") else f"{number(value / 1e6)} MB"
