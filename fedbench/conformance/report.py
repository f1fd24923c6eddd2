"""`fedbench check`: what the plan shows at a glance, then the kit's findings on a run of seconds on digits."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch

from fedbench.config import load_config
from fedbench.conformance.checks import CHECKS, Finding, Trial
from fedbench.conformance.codec_checks import CODEC_CHECKS
from fedbench.conformance.ssl_checks import SSL_CHECKS
from fedbench.encoders import Architecture, Transform, num_blocks
from fedbench.errors import UserError, suggest
from fedbench.federation import Codec, Mechanism, StagePlan, Strategy, load_mechanisms
from fedbench.federation.codec import DIRECTIONS, Way
from fedbench.federation.experiment import check
from fedbench.files import config_names
from fedbench.plugins import Kind, builtin_files, entry_points, is_place, load_plugin, place_of
from fedbench.ssl import SSLMethod

COMPANIONS = ("fedssl", "lw_fedssl")  # with which all but strategies are checked
KINDS: dict[Kind, type] = {
    "strategies": Strategy,
    "mechanisms": Mechanism,
    "ssl": SSLMethod,
    "encoders": Architecture,
    "transforms": Transform,
}
Row = tuple[str, str, Finding | None]  # situation, check, what it found
TINY: dict[str, Any] = {
    "ssl": {"hidden_dim": 16, "output_dim": 8},
    "encoder": {"name": "vit", "image_size": 8, "patch_size": 4, "width": 16, "depth": 3, "heads": 2},
    "data": {"name": "digits", "num_train": 60},
    "optimizer": {"base_lr": 1.0e-1, "batch_size": 8},
    "accelerator": "cpu",
    "threads": 1,
}
SITUATIONS: dict[str, dict[str, Any]] = {
    "all clients": {"num_clients": 3},
    "one client": {"num_clients": 1},
    "some lost, one late": {
        "num_clients": 4,
        "dropout_before": 0.2,
        "dropout_after": 0.3,
        "late_clients": 1,
        "late_round": 3,
    },
}


@contextmanager
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from a second one, and lose much where other processes compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def check_plugin(name: str, fields: Mapping[str, Any]) -> list[Row]:
    """Whatever the plugin is: a strategy alone, anything else with strategies of both kinds.

    Raises:
        UserError: nothing has that name, or it cannot even be started.
    """
    kind = kind_of(name)
    if kind == "strategies":
        return check_strategy({"name": name, **fields})
    rows: list[Row] = check_alone(name, fields) if kind == "ssl" else check_codec(kind, name, fields)
    if any(finding for _, _, finding in rows):
        return rows  # what a federation would show of it is harder to read
    for strategy in COMPANIONS:
        mechanism = {name: dict(fields)} if kind == "mechanisms" else {}
        found = check_strategy({"name": strategy, **mechanism}, _sections(kind, {"name": name, **fields}))
        rows += [(f"{strategy}, {situation}", *rest) for situation, *rest in found]  # type: ignore[misc]
    return rows


def _sections(kind: Kind, plugin: dict[str, Any]) -> dict[str, Any]:
    """Where a plugin stands in a configuration, beside the strategy, and what it cannot do without."""
    if kind == "ssl":
        needs = [dict(one) for one in load_plugin("ssl", plugin["name"], SSLMethod).needs]
        return {"ssl": plugin, **({"encoder": {"transforms": needs}} if needs else {})}
    if kind == "mechanisms":
        return dict(load_plugin("mechanisms", plugin["name"], Mechanism).needs)
    sections = {"encoders": {"encoder": plugin}, "transforms": {"encoder": {"transforms": [plugin]}}}
    return sections.get(kind, {})


def check_alone(name: str, fields: Mapping[str, Any]) -> list[Row]:
    """An SSL method without a federation.

    Raises:
        UserError: it cannot even be built.
    """
    ssl: dict[str, Any] = {**TINY["ssl"], "name": name, **fields}
    crops = 1 if load_plugin("ssl", name, SSLMethod).takes_crops else 0
    config = load_config(TINY, _sections("ssl", ssl), {"augmentation": {"local_crops": crops}})
    rows: list[Row] = []
    for what, look in SSL_CHECKS.items():
        try:
            finding = look(config)
        except UserError:
            raise
        except Exception as error:
            finding = Finding("a step's loss", f"{type(error).__name__}: {error}", place_of(error))
        rows.append(("alone", what, finding))
    return rows


def check_codec(kind: Kind, name: str, fields: Mapping[str, Any]) -> list[Row]:
    """A codec (its first tier) without a federation, each way that it works; no row of anything else.

    Raises:
        UserError: a field is unknown or of the wrong type.
    """
    mechanisms = load_mechanisms({"name": "fedssl", name: dict(fields)}) if kind == "mechanisms" else []
    rows: list[Row] = []
    for codec in (one for one in mechanisms if isinstance(one, Codec)):
        for direction in DIRECTIONS:
            for what, look in CODEC_CHECKS.items() if codec.works(Way(direction)) else ():
                try:
                    finding = look(codec, Way(direction))
                except Exception as error:
                    finding = Finding("a form on the wire", f"{type(error).__name__}: {error}", place_of(error))
                rows.append((f"alone, {direction}", what, finding))
                if finding is not None:
                    break  # what comes behind it says the same in other words
    return rows


def kind_of(name: str) -> Kind:
    """What a name stands for; a file says it by the class that it defines.

    Raises:
        UserError: it stands for nothing that can be checked.
    """
    if not is_place(name):
        presets = {"strategies": config_names("strategies")}
        names: dict[Kind, list[str]] = {
            kind: [*builtin_files(kind), *entry_points(kind), *presets.get(kind, [])] for kind in KINDS
        }
        for kind, known in names.items():
            if name in known:
                return cast(Any, kind)
        every = [one for known in names.values() for one in known]
        raise UserError(f"check: {name!r} is not known; {suggest(name, every)}, or a path ending in .py")
    errors = []
    for kind, base in KINDS.items():
        try:
            load_plugin(kind, name, base)
        except UserError as error:
            errors.append(str(error))
        else:
            return cast(Any, kind)
    raise UserError("\n".join(dict.fromkeys(errors)))


def check_strategy(strategy: str | Mapping[str, Any], more: Mapping[str, Any] | None = None) -> list[Row]:
    """(situation, check, finding or None) for every situation and check, on the quick ViT.

    `more`: sections of the configuration beside the strategy.

    Raises:
        UserError: the strategy cannot even be started.
    """
    return [
        (situation, name, finding)
        for situation, federation in SITUATIONS.items()
        for name, finding in _findings({"strategy": strategy, **(more or {})}, federation)
    ]


def _findings(sections: Mapping[str, Any], federation: Mapping[str, Any]) -> list[tuple[str, Finding | None]]:
    config = load_config(TINY, sections, {"federation": {**federation, "rounds": 6, "local_epochs": 1}})
    try:
        trial = Trial(config)
    except UserError:
        raise
    except Exception as error:
        crash = Finding("a run to the end", f"{type(error).__name__}: {error}", place_of(error))
        return [("runs to the end", crash)]
    return [("runs to the end", None), *((name, look(trial)) for name, look in CHECKS.items())]


def plan_faults(strategy: str | Mapping[str, Any]) -> list[str]:
    """What one look at the plan shows, in its words: blocks that are trained in vain, sent for nothing, forgotten.

    Raises:
        UserError: the strategy cannot even be started.
    """
    config = load_config(TINY, {"strategy": strategy, "federation": {"rounds": 6}})
    _, _, plans, _ = check(config)
    lines = [line for stage, plan in enumerate(plans, start=1) for line in _of_stage(stage, plan)]
    never = sorted(set(range(num_blocks(config.encoder))).difference(*(plan.trainable for plan in plans)))
    return [*lines, *(f"block {block} is trained at no stage" for block in never)]


def _of_stage(stage: int, plan: StagePlan) -> list[str]:
    trained, uploaded = set(plan.trainable), set(plan.upload)
    return [
        *(f"block {block} is trained, not uploaded, in stage {stage}" for block in sorted(trained - uploaded)),
        *(f"block {block} is uploaded, not trained, in stage {stage}" for block in sorted(uploaded - trained)),
    ]


def render(rows: Sequence[Row], verbose: bool = False) -> str:
    """Each fault once: what was expected, what was seen, where to look. `verbose`: a line for each check too."""
    lines = _every_check(rows) if verbose else []
    faults: dict[tuple[str, Finding], list[str]] = {}
    for situation, name, finding in rows:
        if finding is not None:
            faults.setdefault((name, replace(finding, where="")), []).append(f"{situation}: {finding.where}")
    for (name, finding), places in faults.items():
        more = f" (and with {len(places) - 1} other federation(s))" if len(places) > 1 else ""
        lines += [f"\n{name}", f"  expected: {finding.expected}", f"  seen:     {finding.seen}"]
        lines.append(f"  where:    {places[0]}{more}")
    situations = dict.fromkeys(situation for situation, _, _ in rows)
    failed = sum(finding is not None for _, _, finding in rows)
    watched = f"{len(rows)} checks with {'; '.join(situations)}"
    return "\n".join([*lines, "", f"{watched}: {failed} failed"]).lstrip("\n")


def _every_check(rows: Sequence[Row]) -> list[str]:
    width = max(len(name) for _, name, _ in rows)
    lines, before = [], ""
    for situation, name, finding in rows:
        if situation != before:
            lines.append(f"\n{situation}")
            before = situation
        lines.append(f"  {name:<{width}}  {'ok' if finding is None else 'FAILED'}")
    return lines
