"""Profiles as text, JSON and CSV. Files hold base units; only the text divides."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from fedbench.config.load import flat
from fedbench.conventions import CONVENTIONS, ConventionName
from fedbench.escaping import in_sheet
from fedbench.profiling.profile import Number, Profile, StageProfile
from fedbench.tables import GFLOPS, MB, MIB, bullets, markdown, number, with_ratio

REFERENCE = "fedssl"
OF = (
    "a client that takes part in every round",
    "the mean over all registered clients",
)  # by the paper's rules, step


def to_dict(profiles: Sequence[Profile], convention: ConventionName) -> dict[str, Any]:
    """The first profile at the top level; those that it is compared with under `compare`."""
    first, *others = profiles
    listed = {"compare": [_tree(one, profiles, convention) for one in others]} if others else {}
    rule = CONVENTIONS[convention]
    own = "download, upload, memory, local_steps, flops_per_step, server_*, total_flops"
    words = {
        "of": OF[convention == "step"],
        "flops": rule.flops,
        "traffic": rule.traffic,
        "parts": f"{own}: always of the convention step",
    }
    return {"convention": convention, "counts": words, **_tree(first, profiles, convention), **listed}


def _tree(one: Profile, profiles: Sequence[Profile], rule: ConventionName) -> dict[str, Any]:
    return {
        "strategy": one.strategy,
        "samples_per_client": one.sizes.source,
        "unknown": list(one.unknown),
        "stages": [_stage(stage, rule) for stage in one.stages],
        "total": _total(one, rule),
        "ratio_to_fedssl": _ratios(one, profiles, rule),
    }


def _stage(stage: StageProfile, rule: ConventionName) -> dict[str, Any]:
    return {
        "stage": stage.stage,
        "rounds": stage.rounds,
        "depth": stage.depth,
        "trained_parameters": stage.trained_parameters,
        "frozen_parameters": stage.frozen_parameters,
        "local_steps": stage.local_steps,
        "flops_per_step": stage.flops_per_step,
        "server_steps": stage.server_steps,
        "server_flops": stage.server_flops,
        "server_peak_memory_bytes": stage.server_peak_memory_bytes,
        "flops": stage.flops[rule],
        "download_bytes": stage.download_bytes[rule],
        "upload_bytes": stage.upload_bytes[rule],
        "download": dict(stage.download),
        "upload": dict(stage.upload),
        "peak_memory_bytes": stage.peak_memory_bytes,
        "memory": dict(stage.memory),
    }


def _total(one: Profile, rule: ConventionName) -> dict[str, Number]:
    return {
        "download_bytes": one.total("download_bytes", rule),
        "upload_bytes": one.total("upload_bytes", rule),
        "flops": one.total("flops", rule),
        "peak_memory_bytes": one.peak_memory_bytes,
        "server_flops": one.server_flops,
        "server_peak_memory_bytes": one.server_peak_memory_bytes,
        "total_flops": one.total_flops,
        "paper_gflops": one.paper_gflops,
        "paper_comm_gb": one.paper_comm_gb,
        **one.figures,
    }


COSTS = ("flops", "total_flops", "peak_memory_bytes", "download_bytes", "upload_bytes")
UNITS = (GFLOPS, GFLOPS, MIB, MB, MB)


def _ratios(one: Profile, profiles: Sequence[Profile], rule: ConventionName) -> dict[str, float | None]:
    """This profile / FedSSL's, of the same configuration; None without one."""
    reference = next((other for other in profiles if other.strategy == REFERENCE), None)
    own = _total(one, rule)
    base: Mapping[str, Number] = _total(reference, rule) if reference else {}
    return {cost: own[cost] / base[cost] if base.get(cost) else None for cost in COSTS}


def to_csv(profiles: Sequence[Profile], convention: ConventionName) -> str:
    """A line for each strategy and stage, and one for its total; nested figures as `download.heads`."""
    rows = [
        {"convention": convention, "of": OF[convention == "step"], "strategy": in_sheet(one.strategy), **figures}
        for one in profiles
        for figures in [
            *(flat(_stage(stage, convention)) for stage in one.stages),
            {"stage": "total", **_total(one, convention)},
        ]
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_text(profiles: Sequence[Profile], convention: ConventionName) -> str:
    """Totals of every strategy; the stages and the parts of the first one."""
    first = profiles[0]
    rule = CONVENTIONS[convention]
    flops = "GFLOPs" if convention == "step" else "G (paper)"
    sections = [
        f"### One client over the whole run, convention `{convention}`",
        _totals(profiles, convention, flops),
        f"### {first.strategy} by stage",
        _stages(first, convention, flops),
        f"### {first.strategy}: what the bytes are (MB, convention `step`)",
        _bytes(first),
        f"### {first.strategy}: what the peak is (MiB)",
        _memory(first),
        bullets(
            f"FLOPs: {rule.flops}.",
            f"Bytes: {rule.traffic}.",
            f"Client, in the convention `{convention}`: {OF[convention == 'step']}; in `step`, as the bytes by "
            f"what they are, {OF[True]}. Memory: the highest peak of any, as live tensors of a traced step (no "
            "allocator cache).",
            "GFLOPs of all: of every client and of the server's own training, always in the convention `step`; "
            f"the server has {max(first.sizes.server.values(), default=0)} images under {first.strategy}.",
            f"Samples per client: {first.sizes.source}.",
            *(f"{one.strategy}: {what}." for one in profiles for what in one.unknown),
            *(f"{one.strategy}: {_figures(one)}." for one in profiles if one.figures),
            "MB = 10^6 bytes, MiB = 2^20 bytes; (0.50x): this row / `fedssl`.",
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _figures(one: Profile) -> str:
    """`privacy/epsilon 12.9, privacy/delta 1e-05`."""
    return ", ".join(f"{key} {value:.4g}" for key, value in one.figures.items())


def _totals(profiles: Sequence[Profile], rule: ConventionName, flops: str) -> str:
    rows = []
    for one in profiles:
        total, ratio = _total(one, rule), _ratios(one, profiles, rule)
        figures = [(total[cost] / unit, ratio[cost]) for cost, unit in zip(COSTS, UNITS, strict=True)]
        rows.append([one.strategy, *(with_ratio(value, share) for value, share in figures)])
    headers = ["strategy", flops, "GFLOPs of all, step", "peak memory MiB", "download MB", "upload MB"]
    return markdown(headers, rows)


def _stages(one: Profile, rule: ConventionName, flops: str) -> str:
    rows = [
        [
            str(stage.stage),
            str(stage.rounds),
            number(stage.trained_parameters),
            number(stage.frozen_parameters),
            number(stage.flops_per_step / GFLOPS),
            number(stage.flops[rule] / GFLOPS),
            number(stage.peak_memory_bytes / MIB),
            number(stage.download_bytes[rule] / MB),
            number(stage.upload_bytes[rule] / MB),
        ]
        for stage in one.stages
    ]
    headers = [
        "stage",
        "rounds",
        "trained",
        "frozen",
        "GFLOPs/step",
        flops,
        "peak MiB",
        "download MB",
        "upload MB",
    ]
    return markdown(headers, rows, left=0)


def _bytes(one: Profile) -> str:
    rows = []
    for direction in ("download", "upload"):
        totals = {
            part: sum(getattr(stage, direction)[part] for stage in one.stages) for part in one.stages[0].upload
        }
        rows.append([direction, *(number(value / MB) for value in totals.values())])
    return markdown(["direction", *(part.replace("_", "-") for part in one.stages[0].upload)], rows)


def _memory(one: Profile) -> str:
    names = list(dict.fromkeys(name for stage in one.stages for name in stage.memory))
    rows = [
        [str(stage.stage), *(number(stage.memory.get(name, 0) / MIB) for name in names)] for stage in one.stages
    ]
    return markdown(["stage", *names], rows, left=0)
