"""Which rows stand in one table: one protocol, and points of reference beside what they are compared with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forged import rewrite

from fedbench.reporting.leaderboard import leaderboard, read_runs, render
from fedbench.reporting.pareto import PANELS, front
from fedbench.reporting.ranking import Row, by_table, drawn
from fedbench.reporting.sorted_table import grid
from fedbench.tracking.run_directory import RunDirectory

Fake = Callable[..., RunDirectory]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def tables(runs: Path) -> list[list[Row]]:
    return by_table(leaderboard(read_runs(runs)))


def clients(number: int, partition: str = "iid") -> dict:
    return {"federation": {"num_clients": number}, "data": {"partition": {"name": partition}}}


def names(table: list[Row]) -> dict[str, str]:
    return {row.strategy: row.reference for row in table}


def test_a_run_of_two_protocols_is_in_two_tables_each_with_its_name(fake_run: Fake, runs: Path) -> None:
    fake_run("fedssl", 0.6, protocols=("linear", "knn"))
    fake_run("lw_fedssl", 0.5, protocols=("knn",))
    by_protocol = {table[0].protocol: names(table) for table in tables(runs)}
    assert by_protocol == {"linear": {"fedssl": ""}, "knn": {"fedssl": "", "lw_fedssl": ""}}
    text = render(leaderboard(read_runs(runs)))
    assert "Protocol `linear`: a linear classifier" in text
    assert "Protocol `knn`: the frozen encoder's nearest" in text


def test_a_centralised_run_stands_unranked_beside_every_number_of_clients_and_partition(
    fake_run: Fake, runs: Path
) -> None:
    for number, partition in ((3, "iid"), (5, "dirichlet")):
        fake_run("lw_fedssl", 0.6, overrides=clients(number, partition))
    fake_run("fedssl", 0.9, overrides=clients(1))
    assert [names(table) for table in tables(runs)] == [
        {"fedssl (centralised)": "centralised", "lw_fedssl": ""}
    ] * 2
    assert [row.flops_ratio for row in leaderboard(read_runs(runs)) if row.reference] == [None, None]


def test_centralised_runs_alone_compete(fake_run: Fake, runs: Path) -> None:
    fake_run("fedssl", 0.6, overrides=clients(1), ssl="byol")
    fake_run("fedssl", 0.7, overrides=clients(1), ssl="simclr")
    (table,) = tables(runs)
    assert [(row.ssl, row.reference) for row in table] == [("simclr", ""), ("byol", "")]


def test_a_reference_of_another_encoder_is_none(fake_run: Fake, runs: Path) -> None:
    fake_run("fedssl", 0.6)
    fake_run("untrained", 0.5, overrides={"federation": {"rounds": 0}, "encoder": {"depth": 2}})
    assert [names(table) for table in tables(runs)] == [{"fedssl": ""}, {"untrained": ""}]


def test_references_are_on_no_front_and_the_untrained_one_is_the_floor_of_the_picture(
    fake_run: Fake, runs: Path
) -> None:
    fake_run("fedssl", 0.6)
    fake_run("fedssl", 0.9, overrides=clients(1), cost=0.5)
    fake_run("untrained", 0.5, overrides={"federation": {"rounds": 0}}, cost=0)
    (table,) = tables(runs)
    assert [[row.strategy for row in front(table, panel)] for panel in PANELS] == [["fedssl"]] * 5
    assert {row.strategy for row in drawn(table)} == {"fedssl", "fedssl (centralised)"}
    text = " ".join(render(table).split())
    assert "ref, a point of reference, not ranked: centralised, one client has all the data" in text
    assert "the untrained encoder, no federation at all." in text


def test_what_differs_from_the_federations_is_named_in_a_centralised_row(fake_run: Fake, runs: Path) -> None:
    fake_run("fedssl", 0.6)
    once = {"federation": {"num_clients": 1, "rounds": 1}}
    fake_run("fedssl", 0.9, overrides=once)
    (table,) = tables(runs)
    assert {row.strategy: row.variant for row in table} == {
        "fedssl": "",
        "fedssl (centralised)": "federation.rounds=1",
    }


def test_untrained_runs_of_different_methods_are_one_row(fake_run: Fake, runs: Path) -> None:
    for seed, ssl in enumerate(("byol", "simclr")):
        fake_run("fedssl", 0.5, ssl=ssl, seed=seed, overrides={"federation": {"rounds": 0}})
    ((row,),) = tables(runs)
    assert row.seeds == (0, 1)


def test_runs_from_before_there_were_protocols_stand_beside_new_ones(fake_run: Fake, runs: Path) -> None:
    """Their summary says `protocol` and no evaluations; the settings of the classifier are in the manifest."""
    old = fake_run("fedssl", 0.6)
    summary, manifest = old.summary(), old.manifest()
    del summary["evaluations"], manifest["config"]["evaluation"]
    rewrite(old.path, "summary.json", {**summary, "protocol": "linear"})
    rewrite(old.path, "manifest.json", manifest)
    settings = manifest["config"]["probe"]
    facts = {"protocol": "linear", "settings": settings, "data": "digits", "data_hash": "d1"}
    fake_run("fedssl", 0.8, seed=1, figures={"evaluations": [facts]})
    ((row,),) = tables(runs)
    assert row.seeds == (0, 1)
    assert row.top1_mean == pytest.approx(0.7)


def test_what_transforms_make_of_an_encoder_is_compared_in_one_table(fake_run: Fake, runs: Path) -> None:
    fake_run("fedssl", 0.8)
    fake_run("fedssl", 0.7, overrides={"encoder": {"transforms": [{"name": "cola", "ratio": 0.5}, "shared_mlp"]}})
    ((dense, low),) = tables(runs)
    assert (dense.variant, low.variant) == (
        "",
        "encoder.transforms=cola(ratio=0.5)+shared_mlp",
    )


def test_a_title_says_the_transforms_that_all_rows_share(fake_run: Fake, runs: Path) -> None:
    for strategy in ("fedssl", "prog_fedssl"):
        fake_run(strategy, 0.8, overrides={"encoder": {"transforms": "cola"}})
    ((first, _),) = tables(runs)
    assert first.title.endswith(", encoder.transforms=cola")
    assert first.variant == ""


def test_given_weights_are_told_apart_by_what_is_in_them_and_not_by_where_they_are(
    fake_run: Fake, runs: Path
) -> None:
    for seed, (place, content) in enumerate([("a", "1" * 64), ("b", "1" * 64), ("c", "2" * 64)]):
        run = fake_run("fedssl", 0.8, seed=seed, overrides={"encoder": {"init": f"{place}.safetensors"}})
        manifest = run.manifest()
        rewrite(
            run.path, "manifest.json", {**manifest, "sources": {**manifest["sources"], "encoder.init": content}}
        )
    assert [[row.seeds for row in table] for table in tables(runs)] == [[(0, 1)], [(2,)]]
    assert [" from weights 11111111," in table[0].title for table in tables(runs)] == [True, False]


def test_how_features_lie_is_told_where_it_is_known(fake_run: Fake, runs: Path) -> None:
    fake_run("fedssl", 0.8)
    ((row,),) = tables(runs)
    assert row.effective_rank is None
    assert "rank of features" not in render([row])
    known = {"features/effective_rank": 7.25, "features/uniformity": -1.5, "features/alignment": 0.5}
    fake_run("prog_fedssl", 0.8, figures=known)
    ((one, other),) = tables(runs)
    assert {one.effective_rank, other.effective_rank} == {None, 7.25}
    text = render([one, other])
    assert all(word in text for word in ("rank of features", "uniformity", "7.25", "-1.50", "0.50"))
    assert "density" not in text.lower()


def test_what_clients_models_of_their_own_are_worth_stands_beside_the_servers(fake_run: Fake, runs: Path) -> None:
    for seed, own in ((0, 0.7), (1, 0.74)):
        fake_run("fedssl", 0.8, seed=seed)
        fake_run("prog_fedssl", 0.8, seed=seed, figures={"personal/linear_top1": own, "personal/knn_top1": 0.1})
    (rows,) = tables(runs)
    plain, own_models = sorted(rows, key=lambda row: row.strategy)
    assert plain.personal_top1_mean is None
    assert own_models.personal_top1_mean == pytest.approx(0.72)
    text = render([plain, own_models])
    assert all(word in text for word in ("personal %", "72.0 ± 2.8", "mean over all clients"))
    assert "personal" not in render([plain])
    with_it, without = (
        [column.title for column in grid(rows)["columns"]] for rows in ([plain, own_models], [plain])
    )
    assert [title for title in with_it if title not in without] == ["personal %"]


def test_the_density_of_gates_is_told_beside_the_flops(fake_run: Fake, runs: Path) -> None:
    fake_run("fedssl", 0.8, figures={"features/effective_rank": 7.25, "features/density": 0.312})
    fake_run("prog_fedssl", 0.8)
    ((one, other),) = tables(runs)
    assert {one.density, other.density} == {None, 0.312}
    text = render([one, other])
    assert all(word in text for word in ("density %", "31.2", "the share that inference needs; FLOPs are of all"))


def test_a_title_says_what_an_encoder_has(fake_run: Fake, runs: Path) -> None:
    fake_run("fedssl", 0.8, overrides={"encoder": {"name": "timm", "model": "vit_tiny_patch16_224"}})
    fake_run("prog_fedssl", 0.8, overrides={"encoder": {"name": "cnn", "width": 8}})
    titles = {table[0].title.split("), ")[1] for table in tables(runs)}
    assert titles == {"timm (8 px, model vit_tiny_patch16_224", "cnn (8 px, width 8"}


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        (None, "no fedssl row"),
        ({"ssl": "byol"}, "no fedssl row with moco_v3"),
        ({"overrides": {"federation": {"local_epochs": 5}}}, "the fedssl row differs in federation.local_epochs"),
        ({}, ""),
    ],
)
def test_a_row_without_a_ratio_says_why(
    fake_run: Fake, runs: Path, reference: dict[str, Any] | None, why: str
) -> None:
    fake_run("lw_fedssl", 0.7)
    if reference is not None:
        fake_run("fedssl", 0.8, **reference)
    rows = leaderboard(read_runs(runs))
    (row,) = [row for row in rows if row.strategy == "lw_fedssl"]
    assert row.no_ratio == why
    assert (row.total_flops_ratio is None) == bool(why)
    told = " ".join(render([row]).split())
    assert ("Without a ratio" in told) == bool(why)
    assert why in told


def test_what_a_run_has_spent_of_privacy_is_told_where_it_is_known(fake_run: Fake, runs: Path) -> None:
    fake_run("fedssl", 0.8)
    ((row,),) = tables(runs)
    assert row.epsilon is None
    assert "epsilon" not in render([row])
    fake_run("prog_fedssl", 0.8, figures={"privacy/epsilon": 12.34, "privacy/delta": 1e-5})
    ((one, other),) = tables(runs)
    assert {(row.epsilon, row.delta) for row in (one, other)} == {(None, None), (12.34, 1e-5)}
    text = " ".join(render([one, other]).split())  # notes are wrapped
    assert all(words in text for words in ("epsilon (delta)", "12.3 (1e-05)", "those who do not know the seed"))
    columns = {column.title: number for number, column in enumerate(grid([one, other])["columns"])}
    shown = {row["cells"][columns["epsilon (delta)"]]["shown"] for row in grid([one, other])["rows"]}
    assert shown == {"-", "12.3 (1e-05)"}
    assert "epsilon (delta)" not in {column.title for column in grid([row])["columns"]}
