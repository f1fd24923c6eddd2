"""`evaluate`: finished runs judged again, by other protocols or on other data; what they hold already stays."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import fedbench
from fedbench.config import Config, load_config
from fedbench.config.load import digest
from fedbench.data import Dataset, load_dataset
from fedbench.errors import UserError
from fedbench.escaping import in_markdown, printable
from fedbench.evaluation import description, evaluate, untrained_encoder
from fedbench.federation.experiment import check_judged, choose_device
from fedbench.numerics import require, settle
from fedbench.pretrained import load_encoder
from fedbench.protocols import PROTOCOLS, ProtocolName
from fedbench.tables import bullets, markdown
from fedbench.tracking.manifest import git_state, library_versions, machine
from fedbench.tracking.run_directory import RunDirectory, sealed, write_json
from fedbench.tracking.runs import Run, gather

Tree = Mapping[str, Any]
ALLOWED = ("probe", "evaluation", "accelerator", "threads")  # what does not change what was trained
HEADERS = ("run", "protocol", "judged on", "top-1 %", "per class %", "macro F1 %", "floor %", "gain")


class Case(NamedTuple):
    """A finished run, and how to judge it."""

    path: Path
    config: Config
    dataset: Dataset


def judge(paths: Iterable[Path], protocols: Sequence[str], data: Tree, overrides: Tree) -> str:
    """Write `evaluation-<protocol>-<data>-<hash>.json` into every run directory; returns the figures as a table.

    Args:
        paths: run directories, or folders of them.
        data: of the section `evaluation.data`: what changes in the run's own, or, with a `name`, another one.
        overrides: of the other keys that do not change what was trained.

    Raises:
        UserError: before anything is evaluated, naming the key, or where there is no finished run.
    """
    cases = _cases(paths, protocols, data, overrides)
    lines = [_judge(case, name) for case in cases for name in case.config.evaluation.protocols]
    notes = [f"`{name}`: {PROTOCOLS[name]}." for name in protocols]
    floor = "Floor: the same protocol on the untrained encoder; gain: points of top-1 above it."
    return f"{markdown(HEADERS, lines, left=3)}\n\n{bullets(*notes, floor)}"


def _cases(paths: Iterable[Path], protocols: Sequence[str], data: Tree, overrides: Tree) -> list[Case]:
    """All checked, before the first is judged."""
    refused = [key for key in overrides if key not in ALLOWED]
    if refused:
        raise UserError(f"{refused[0]}: the run is trained already; allowed: {', '.join(ALLOWED)}, and --data")
    runs, left_out = gather(paths)
    for path, reason in left_out.items():
        print(printable(f"fedbench: {path} is left out, {reason}"), file=sys.stderr)
    if not runs:
        raise UserError(f"no finished run in {', '.join(map(str, paths))}; `run` makes some")
    found = {run.path: run for run in runs if run.path}  # the last one of a folder is its own evaluation
    return [_case(run, protocols, data, overrides) for run in found.values()]


def _case(run: Run, protocols: Sequence[str], data: Tree, overrides: Tree) -> Case:
    assert run.path is not None
    trained, path, known = run.manifest["config"], run.path, run.evaluation.data_hash
    own = trained.get("evaluation", {}).get("data") or {
        k: v for k, v in trained["data"].items() if k != "partition"
    }
    wanted = {"protocols": list(protocols), "data": None if "name" in data else own}
    config = load_config(
        trained, {"evaluation": wanted}, {"evaluation": {"data": data} if data else {}}, overrides
    )
    require(config)
    check_judged(config)
    choose_device(config.accelerator)
    assert config.evaluation.data is not None
    split, before = config.evaluation.split, trained.get("evaluation", {}).get("split", "test")
    if split != before:
        raise UserError(
            f"evaluation.split={split}: {path.name} was trained for the split {before}; allowed: {before}, "
            "because of its images the run has seen none"
        )
    try:
        dataset = load_dataset(config.evaluation.data, config.encoder, split, "evaluation.data")
    except UserError as error:
        raise UserError(f"{path.name}: {error}; --data path=PATH says where the images are now") from error
    if not data.keys() - {"path"} and dataset.content_hash != known:
        print(f"fedbench: {path.name}: these are not the images that the run knew", file=sys.stderr)
    return Case(path, config, dataset)


def _judge(case: Case, name: ProtocolName) -> list[str]:
    """Evaluate, write the file; returns a line of the table."""
    config, device = case.config, choose_device(case.config.accelerator)
    settle(config)
    facts = description(name, case.dataset, config)
    figures: dict[str, float] = {}
    for who, encoder in (
        ("probe", load_encoder(case.path, plugins=True).encoder),
        ("untrained", untrained_encoder(config)),
    ):
        scored = evaluate(encoder.to(device), case.dataset, config, [name])
        figures |= {f"{who}/{key}": value for key, value in scored.items()}
    data = re.sub(r"[^A-Za-z0-9_.]+", "_", case.dataset.name)
    file = case.path / f"evaluation-{name}-{data}-{digest(facts)[:8]}.json"
    content = {**facts, "seed": config.seed, "figures": figures, **_circumstances(case, device.type)}
    write_json(file, sealed(content))
    top1, floor = figures[f"probe/{name}_top1"], figures[f"untrained/{name}_top1"]
    of_classes = [figures.get(f"probe/{name}_{figure}") for figure in ("per_class_mean", "macro_f1")]
    shown = ["-" if value is None else f"{100 * value:.1f}" for value in (top1, *of_classes, floor)]
    return [
        in_markdown(case.path.name),
        name,
        in_markdown(case.dataset.name),
        *shown,
        f"{100 * (top1 - floor):+.1f}",
    ]


def _circumstances(case: Case, device: str) -> dict[str, Any]:
    """Which run, when, by which code, on what machine."""
    return {
        "cell_hash": RunDirectory(case.path).manifest()["cell_hash"],
        "evaluated": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "fedbench": fedbench.__version__,
        **git_state(Path(fedbench.__file__).parents[1]),
        "libraries": library_versions(),
        **machine(case.config.accelerator),
    }
