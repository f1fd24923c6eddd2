"""The rows of the leaderboard: means over seeds, what separates them, and costs relative to FedSSL."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fedbench.config.load import UNTRAINED
from fedbench.config.schema import OptimizerConfig
from fedbench.escaping import printable
from fedbench.reporting.comparison import OF_CLIENTS, Cell, comparable, varying
from fedbench.reporting.paired import is_better, paired_difference
from fedbench.tracking.runs import Run, describe

REFERENCE = "fedssl"
WITHOUT_COST = (
    *("optimizer.base_lr", "optimizer.weight_decay", "optimizer.schedule"),
    *("ssl.temperature", "ssl.momentum", "augmentation."),
)


@dataclass(frozen=True)
class Row:
    """One cell; costs are of one client over the whole run, in base units, unless they are called otherwise.

    A ratio is this row / the `fedssl` row of the same table and SSL method that agrees in all that costs depend
    on; None without such a row, and for memory also where the two were measured differently. A figure that an
    older run did not note is None.
    """

    table: int  # rows of one table are comparable, and ranked against each other only
    title: str  # of the table, in words
    rank: int | None  # 1 + the rows that are above all doubt better, see `_place`; None: nothing can be said
    reference: str  # `untrained` or `centralised`: what the others are compared with; "": it competes
    strategy: str
    ssl: str
    variant: str  # settings in which the rows of this table differ, besides strategy and ssl
    tuned: str  # how its settings were found: `16 trials`; "": by nobody knows whom
    rounds: int
    local_epochs: int
    batch_size: int
    learning_rate: float  # of a step: base_lr * batch_size / 256
    participants: int  # clients of a round
    augmentation: str  # `batched min_scale=0.4 ...`
    seeds: tuple[int, ...]
    missing_seeds: tuple[int, ...]  # that other rows of the table have, and this cell has not, diverged or not
    diverged: bool  # runs that diverged are a row of their own
    diverged_seeds: tuple[int, ...]  # of this cell, not in the means of this row
    protocol: str  # of the next four figures
    protocol_settings: str
    top1_mean: float  # fraction
    top1_std: float | None  # sample standard deviation (ddof = 1); None for one seed
    top1_by_seed: tuple[float, ...]  # in the order of `seeds`
    personal_top1_mean: float | None  # of the clients' own models, where they have some: the mean over all clients
    personal_top1_std: float | None
    difference: float | None  # to the reference, see `paired`; mean over the seeds that both have, a fraction
    difference_low: float | None  # of its confidence interval
    difference_high: float | None
    difference_pairs: int  # seeds that both have
    untrained_top1_mean: float  # the floor: same protocol, same encoder, untrained
    gain: float  # top1_mean - untrained_top1_mean
    effective_rank: float | None  # of the trained encoder's features of test images; mean over the seeds
    uniformity: float | None  # the lower, the more evenly they lie on the sphere; 0: all alike
    alignment: float | None  # squared distance of an image's two views there; the lower, the nearer
    density: float | None  # share of gated channels that the trained encoder opens for test images
    local_steps: float | None  # of one client
    flops: float  # 1 multiply-add = 2
    flops_ratio: float | None
    server_flops: float | None  # of the server's own training
    total_flops: float | None  # of all clients and the server
    total_flops_ratio: float | None
    no_ratio: str  # why it has none; "": it has, or needs none
    peak_memory_bytes: float
    peak_memory_ratio: float | None
    memory_source: str
    server_peak_memory_bytes: float | None  # of the server's own training
    download_bytes: float
    download_ratio: float | None
    upload_bytes: float
    upload_ratio: float | None
    epsilon: float | None  # what a client's privacy is bounded by, of the whole run; None: by nothing
    delta: float | None  # at which it holds
    secure_aggregation_bytes: float | None  # that it would add to a client's, by a model; in no other figure
    seconds: float  # wall time of the whole run
    convention: str
    data_hash: str  # of pre-training
    evaluation_data_hash: str
    machine: str
    numerics: tuple[str, ...]  # CPU kernels that ran it
    code: tuple[str, ...]  # commits that ran it, with `+` where files differed
    runs: tuple[str, ...]  # their directories, in the order of `seeds`; see `located`
    wandb: tuple[str, ...]  # their W&B runs, in the same order; see `Run.wandb`


def row_name(row: Row, rows: Sequence[Row]) -> str:
    """As much of a row's name as tells it from the other rows of its table."""
    several = len({other.ssl for other in rows if other.ssl}) > 1
    return " ".join(filter(None, [row.strategy, row.ssl if several else "", row.variant]))


def short_name(label: str) -> tuple[str, list[str]]:
    """`lw_fedssl@v3(alignment=None, calibration.epochs=3)` -> its name, and what was changed."""
    found = re.fullmatch(r"([^(]+)\((.*=.*?)\)(.*)", label)
    return (f"{found[1]}{found[3]}", found[2].split(", ")) if found else (label, [])


def top1_of(row: Row) -> dict[int, float]:
    """Seed -> top-1, a fraction."""
    return dict(zip(row.seeds, row.top1_by_seed, strict=True))


def drawn(rows: Sequence[Row]) -> list[Row]:
    """The rows that have a place in a picture: an untrained one is the floor, which is drawn as such."""
    return [row for row in rows if row.reference != UNTRAINED]


def by_table(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows in order of table, one list for each."""
    return [list(table) for _, table in groupby(rows, key=lambda row: row.table)]


def leaderboard(runs: Iterable[Run]) -> list[Row]:
    """Rows in order of table and rank."""
    return [row for table in ranked(runs) for row, _ in table]


def located(row: Row, folder: Path) -> Row:
    """The same row with its run directories as seen from `folder`, where it will be read."""
    seen = (os.path.relpath(path, folder.resolve()) for path in row.runs)
    return replace(row, runs=tuple(Path(path).as_posix() for path in seen))


def reworded(row: Row, change: Callable[[str], str]) -> Row:
    """The same row with all its words changed: those that others wrote are in it."""
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    return replace(row, **{name: _changed(value, change) for name, value in values.items()})


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, tuple):
        return tuple(_changed(one, change) for one in value)
    return change(value) if isinstance(value, str) else value


def ranked(runs: Iterable[Run]) -> list[list[tuple[Row, Cell]]]:
    """Tables of rows, best first, each with the runs that it speaks of. No word in a row moves a cursor."""
    tables = _told_apart([_rank(number, table) for number, table in enumerate(comparable(runs), 1)])
    return [[(reworded(row, printable), cell) for row, cell in table] for table in tables]


def _told_apart(tables: Sequence[list[tuple[Row, Cell]]]) -> list[list[tuple[Row, Cell]]]:
    """Titles with the data's hash where several data go by one title: two folders of one name."""
    data = defaultdict(set)
    for table in tables:
        data[table[0][0].title].add(table[0][0].data_hash)
    return [
        [(replace(row, title=f"{row.title}, data {table[0][0].data_hash[:8]}"), cell) for row, cell in table]
        if len(data[table[0][0].title]) > 1
        else table
        for table in tables
    ]


def _rank(number: int, table: Sequence[Cell]) -> list[tuple[Row, Cell]]:
    ordered = sorted(table, key=lambda cell: (-cell.accuracy, cell.label("strategy"), cell.label("ssl")))
    return [(_row(number, cell, table), cell) for cell in ordered]


def _row(number: int, cell: Cell, table: Sequence[Cell]) -> Row:
    accuracies = [run.evaluation.top1 for run in cell.runs]
    manifest, judged = cell.runs[0].manifest, cell.runs[0].evaluation
    rivals = [other for other in table if other.kind == table[0].kind]
    return Row(
        table=number,
        title=_title(table),
        rank=_place(cell, rivals),
        reference="" if cell in rivals else cell.kind,
        strategy=_name(cell),
        ssl="" if cell.kind == UNTRAINED else cell.label("ssl"),
        variant=" ".join(
            [*(f"{key}={cell.settings[key]}" for key in _differing(cell, rivals)), *_source(cell, rivals)]
        ),
        tuned=_tuned(cell),
        **_training(cell.runs[0].manifest["config"]),
        seeds=cell.seeds,
        missing_seeds=_missing_seeds(cell, table),
        diverged=cell.diverged,
        diverged_seeds=tuple(seed for twin in _twins(cell, table) for seed in twin.seeds if not cell.diverged),
        protocol=judged.protocol,
        protocol_settings=" ".join(f"{key}={value}" for key, value in judged.settings.items()),
        top1_mean=cell.accuracy,
        top1_std=stdev(accuracies) if len(accuracies) > 1 else None,
        top1_by_seed=tuple(accuracies),
        personal_top1_mean=fmean(cell.personal) if cell.personal else None,
        personal_top1_std=stdev(cell.personal) if cell.personal and len(cell.personal) > 1 else None,
        **_difference(cell, table),
        untrained_top1_mean=cell.floor,
        gain=cell.accuracy - cell.floor,
        effective_rank=cell.known_mean("features/effective_rank"),
        uniformity=cell.known_mean("features/uniformity"),
        alignment=cell.known_mean("features/alignment"),
        density=cell.known_mean("features/density"),
        local_steps=cell.known_mean("client/local_steps"),
        flops=cell.mean("client/flops"),
        flops_ratio=_ratio(cell, table, "client/flops"),
        server_flops=cell.known_mean("server/flops"),
        total_flops=cell.known_mean("total/flops"),
        total_flops_ratio=_ratio(cell, table, "total/flops"),
        no_ratio=_why_no_reference(cell, table) if cell in rivals else "",
        peak_memory_bytes=cell.mean("client/peak_memory_bytes"),
        peak_memory_ratio=_ratio(cell, table, "client/peak_memory_bytes"),
        memory_source=cell.label("memory_source"),
        server_peak_memory_bytes=cell.known_mean("server/peak_memory_bytes"),
        download_bytes=cell.mean("client/download_bytes"),
        download_ratio=_ratio(cell, table, "client/download_bytes"),
        upload_bytes=cell.mean("client/upload_bytes"),
        upload_ratio=_ratio(cell, table, "client/upload_bytes"),
        epsilon=cell.known_mean("privacy/epsilon"),
        delta=cell.known_mean("privacy/delta"),
        secure_aggregation_bytes=cell.known_mean("secure_aggregation/model_bytes"),
        seconds=cell.mean("seconds"),
        convention=cell.label("convention"),
        data_hash=str(manifest["data_hash"]),
        evaluation_data_hash=judged.data_hash,
        machine=str(manifest.get("accelerator") or manifest.get("processor") or "unknown"),
        numerics=tuple(sorted({run.numerics for run in cell.runs})),
        code=tuple(sorted({run.code for run in cell.runs})),
        runs=tuple(str(run.path) for run in cell.runs if run.path),
        wandb=tuple(run.wandb for run in cell.runs),
    )


def _title(table: Sequence[Cell]) -> str:
    """Data, federation, encoder and protocol; transforms where no row differs in them."""
    transforms = {str(cell.settings.get("encoder.transforms")) for cell in table}
    shared = f", encoder.transforms={transforms.pop()}" if len(transforms) == 1 and transforms != {"None"} else ""
    return describe(table[0].runs[0]) + shared


def _name(cell: Cell) -> str:
    """The strategy, or what stands in its place."""
    if cell.kind == UNTRAINED:
        scratch = cell.runs[0].evaluation.protocol == "finetune"
        return "supervised from scratch" if scratch else UNTRAINED
    words = [cell.label("strategy"), f"({cell.kind})" if cell.kind else "", "(diverged)" if cell.diverged else ""]
    return " ".join(filter(None, words))


def _differing(cell: Cell, rivals: Sequence[Cell]) -> list[str]:
    """Settings that tell a row from those that compete; what makes a point of reference one is in its name."""
    if cell not in rivals and cell.kind == UNTRAINED:
        return []
    keys = varying([*rivals, cell])
    own = OF_CLIENTS if cell not in rivals else ()
    return [key for key in keys if key in cell.settings and not key.startswith(own)]


def _source(cell: Cell, rivals: Sequence[Cell]) -> list[str]:
    """`code=6d29e6ab` where rows differ in nothing but the source files of their plugins: two versions of one."""
    twins = [other for other in rivals if _unsourced(other) == _unsourced(cell)]
    own = cell.settings
    keys = [key for key in own if key.startswith("sources.")]
    told = [key for key in keys if any(other.settings.get(key) != own[key] for other in twins)]
    return [f"code={','.join(str(own[key])[:8] for key in told)}"] if told else []


def _unsourced(cell: Cell) -> tuple[str, str, dict[str, Any]]:
    """All that a row shows of its cell."""
    rest = {key: value for key, value in cell.settings.items() if not key.startswith("sources.")}
    return _name(cell), cell.label("ssl"), rest


def _missing_seeds(cell: Cell, table: Sequence[Cell]) -> tuple[int, ...]:
    own = {seed for same in (cell, *_twins(cell, table)) for seed in same.seeds}
    return tuple(sorted({seed for other in table for seed in other.seeds} - own))


def _twins(cell: Cell, table: Sequence[Cell]) -> list[Cell]:
    """The runs of the same cell that diverged, where these did not, or the other way round."""
    return [other for other in table if other.settings == cell.settings and other.diverged != cell.diverged]


def _place(cell: Cell, rivals: Sequence[Cell]) -> int | None:
    """1 + the rows above the nearest cut, across which every row above is better than every row below.

    None for what does not compete, diverged, or has one seed, which ranks nothing.
    """
    ranked = sorted(
        (one for one in rivals if not one.diverged and len(one.seeds) > 1), key=lambda one: -one.accuracy
    )
    if cell not in ranked:
        return None
    cuts = (
        number
        for number in range(1, ranked.index(cell) + 1)
        if all(is_better(above.top1, below.top1) for above in ranked[:number] for below in ranked[number:])
    )
    return 1 + max(cuts, default=0)


def _difference(cell: Cell, table: Sequence[Cell]) -> dict[str, Any]:
    """The paired difference to the reference, which has none itself."""
    reference = _reference(cell, table)
    found = None if reference in (None, cell) else paired_difference(cell.top1, reference.top1)
    names = ("difference", "difference_low", "difference_high", "difference_pairs")
    values = (None, None, None, 0) if found is None else (found.mean, found.low, found.high, found.pairs)
    return dict(zip(names, values, strict=True))


def _tuned(cell: Cell) -> str:
    """By how many trials its settings were found, where all its runs say the same."""
    records = [run.manifest["config"].get("tuning") for run in cell.runs]
    same = records[0] and all(record == records[0] for record in records)
    return f"{records[0]['trials']} trials" if same else ""


def _training(config: Mapping[str, Any]) -> dict[str, Any]:
    """How the clients were trained, which the seeds of a cell share."""
    federation, noted = config["federation"], config["optimizer"]  # a later version may note more of it
    optimizer = OptimizerConfig(base_lr=noted["base_lr"], batch_size=noted["batch_size"])
    own = {key: value for key, value in config["augmentation"].items() if key != "name"}
    words = (f"{key}={_listed(value)}" for key, value in own.items())
    return {
        "rounds": federation["rounds"],
        "local_epochs": federation["local_epochs"],
        "batch_size": optimizer.batch_size,
        "learning_rate": optimizer.lr,
        "participants": federation["participants"] or federation["num_clients"],
        "augmentation": " ".join([config["augmentation"]["name"], *words]),
    }


def _listed(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _ratio(cell: Cell, table: Sequence[Cell], cost: str) -> float | None:
    reference = _reference(cell, table) if cell.kind == table[0].kind else None
    if reference is None or not reference.known_mean(cost) or cell.known_mean(cost) is None:
        return None
    if cost == "client/peak_memory_bytes" and reference.label("memory_source") != cell.label("memory_source"):
        return None
    return cell.mean(cost) / reference.mean(cost)


def _reference(cell: Cell, table: Sequence[Cell]) -> Cell | None:
    """The `fedssl` cell of this SSL method that is like this one in all the rest, or in all that costs depend on.

    None if there is none, or there are several that differ in what is tuned.
    """
    found = [other for other in table if other.label("ssl") == cell.label("ssl")]
    found = [other for other in found if other.label("strategy") == REFERENCE and other.kind == cell.kind]
    found = [other for other in found if not _of_costs(varying([other, cell]))]
    found = [other for other in found if not other.diverged] or found  # costs are the same, but seeds are not
    alike = [other for other in found if not varying([other, cell])] or found
    return alike[0] if len(alike) == 1 else None


def _why_no_reference(cell: Cell, table: Sequence[Cell]) -> str:
    """What keeps a row from a ratio to `fedssl`, in words; "" where there is a reference."""
    if _reference(cell, table) is not None:
        return ""
    found = [other for other in table if other.label("strategy") == REFERENCE and other.kind == cell.kind]
    same_method = [other for other in found if other.label("ssl") == cell.label("ssl")]
    if not same_method:
        return f"no {REFERENCE} row" + (f" with {cell.label('ssl')}" if found else "")
    unlike = [_of_costs(varying([other, cell])) for other in same_method]
    if all(unlike):
        fewest = min(unlike, key=len)
        return f"the {REFERENCE} row differs in {', '.join(fewest)}"
    return f"several {REFERENCE} rows that differ in what is tuned"


def _of_costs(keys: Iterable[str]) -> list[str]:
    """Without what changes a result and no cost."""
    return [key for key in keys if not key.startswith(WITHOUT_COST)]
