import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from forged import rewrite

from fedbench.errors import UserError
from fedbench.reporting.leaderboard import leaderboard, read_runs, render, write
from fedbench.tracking.run_directory import RunDirectory

Fake = Callable[..., RunDirectory]
EVALUATION = {"protocol": "linear", "settings": {"epochs": 100}, "data": "digits", "data_hash": "d1"}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def three_strategies(fake_run: Fake) -> None:
    for seed, top1 in ((2, 0.80), (0, 0.90), (1, 0.73)):
        fake_run("fedssl", top1, seed=seed)
        fake_run("lw_fedssl", top1 - 0.05, seed=seed, cost=0.25)
    fake_run("prog_fedssl", 0.95, cost=0.5)


def test_seeds_of_one_cell_become_one_row_with_mean_and_sample_deviation(fake_run: Fake, runs: Path) -> None:
    three_strategies(fake_run)
    row = leaderboard(read_runs(runs))[1]
    values = [0.80, 0.90, 0.73]
    assert (row.strategy, row.seeds) == ("fedssl", (0, 1, 2))
    assert row.top1_mean == pytest.approx(numpy.mean(values))
    assert row.top1_std == pytest.approx(numpy.std(values, ddof=1))
    assert row.gain == pytest.approx(numpy.mean(values) - 0.5)
    assert leaderboard(read_runs(runs))[0].top1_std is None  # prog_fedssl, one seed


def test_rows_are_in_the_order_of_their_means_and_costs_are_relative_to_fedssl(fake_run: Fake, runs: Path) -> None:
    three_strategies(fake_run)
    rows = leaderboard(read_runs(runs))
    assert [row.strategy for row in rows] == ["prog_fedssl", "fedssl", "lw_fedssl"]
    for row, ratio in zip(rows, (0.5, 1.0, 0.25), strict=True):
        ratios = (
            row.flops_ratio,
            row.total_flops_ratio,
            row.peak_memory_ratio,
            row.download_ratio,
            row.upload_ratio,
        )
        assert ratios == pytest.approx((ratio,) * 5)


def test_each_ratio_is_of_its_own_cost(fake_run: Fake, runs: Path) -> None:
    fake_run("fedssl", 0.9)
    costs = {"flops": 1e9, "peak_memory_bytes": 2**20, "download_bytes": 4e6, "upload_bytes": 1.5e6}
    fake_run("lw_fedssl", 0.8, figures={f"client/{key}": value for key, value in costs.items()})
    row = leaderboard(read_runs(runs))[1]
    ratios = (row.flops_ratio, row.peak_memory_ratio, row.download_ratio, row.upload_ratio)
    assert ratios == pytest.approx((1 / 8, 1 / 3, 4 / 5, 3 / 4))


def test_only_what_the_paired_interval_separates_is_ranked(fake_run: Fake, runs: Path) -> None:
    """b is above a by 9, 10 and 11 points; c is above b by 2 in the mean, but by -8 and +10 in single seeds."""
    for strategy, top1 in (("a", (0.50, 0.60, 0.70)), ("b", (0.59, 0.70, 0.81)), ("c", (0.61, 0.71, 0.82))):
        for seed, value in enumerate(top1):
            fake_run(strategy, value, seed=seed)
    rows = leaderboard(read_runs(runs))
    assert [(row.strategy, row.rank) for row in rows] == [("c", 1), ("b", 1), ("a", 3)]


def test_rows_that_no_interval_separates_share_a_rank_whoever_else_is_better(fake_run: Fake, runs: Path) -> None:
    """b is better than a, and c is not: c's place above a would be an order that nothing supports."""
    for strategy, top1 in (("a", (0.50, 0.60, 0.70)), ("b", (0.59, 0.70, 0.81)), ("c", (0.69, 0.71, 0.73))):
        for seed, value in enumerate(top1):
            fake_run(strategy, value, seed=seed)
    assert [(row.strategy, row.rank) for row in leaderboard(read_runs(runs))] == [("c", 1), ("b", 1), ("a", 1)]


def test_one_seed_ranks_nothing(fake_run: Fake, runs: Path) -> None:
    for strategy, top1 in (("a", 0.7), ("b", 0.8)):
        fake_run(strategy, top1)
    rows = leaderboard(read_runs(runs))
    assert [row.rank for row in rows] == [None, None]
    assert "| -   | b " in render(rows)


def test_the_difference_to_fedssl_is_paired_with_an_interval_by_hand(fake_run: Fake, runs: Path) -> None:
    """Differences of 2, 4 and 6 points: mean 4, standard error 2/sqrt(3), t(0.975, 2) = 4.3027."""
    for seed, top1 in enumerate((0.50, 0.60, 0.90)):
        fake_run("fedssl", top1, seed=seed)
        fake_run("lw_fedssl", top1 + 0.02 * (seed + 1), seed=seed)
    fake_run("fedssl", 0.10, seed=9)  # no pair
    lw, fedssl = leaderboard(read_runs(runs))
    reach = 4.302653 * 0.02 / 3**0.5
    assert (lw.difference, lw.difference_low, lw.difference_high) == pytest.approx(
        (0.04, 0.04 - reach, 0.04 + reach)
    )
    assert lw.difference_pairs == 3
    assert (fedssl.difference, fedssl.difference_pairs) == (None, 0)
    assert "| +4.0 [-1.0, +9.0] |" in " ".join(render([lw, fedssl]).split())


def test_a_tuned_row_is_still_set_against_fedssl_and_says_how_it_was_tuned(fake_run: Fake, runs: Path) -> None:
    record = {"grid": "g", "trials": 16, "space": {}, "sampler": "", "split": "validation", "protocol": "linear"}
    tuned = {"tuning": {**record, "seeds": [7], "score": 0.5}}
    fake_run("fedssl", 0.7, overrides={"optimizer": {"base_lr": 0.1}, **tuned})
    fake_run("lw_fedssl", 0.8, cost=0.5, overrides={"optimizer": {"base_lr": 0.2}, **tuned})
    fake_run("prog_fedssl", 0.6, overrides={"optimizer": {"base_lr": 0.2}, "federation": {"local_epochs": 7}})
    rows = {row.strategy: row for row in leaderboard(read_runs(runs))}
    assert rows["lw_fedssl"].flops_ratio == pytest.approx(0.5)
    assert rows["prog_fedssl"].flops_ratio is None  # other local epochs are other costs
    assert [rows[name].tuned for name in ("fedssl", "lw_fedssl", "prog_fedssl")] == ["16 trials", "16 trials", ""]
    text = " ".join(render(list(rows.values())).split())
    assert "NOT TUNED ALIKE: " in text
    assert "(not tuned)" in text


def test_unequal_local_steps_are_said(fake_run: Fake, runs: Path) -> None:
    fake_run("fedssl", 0.7)
    fake_run("lw_fedssl", 0.8)
    assert "Local steps unlike" not in render(leaderboard(read_runs(runs)))
    fake_run("prog_fedssl", 0.6, figures={"client/local_steps": 18.0})
    assert "Local steps unlike fedssl's: prog_fedssl 0.75x" in " ".join(
        render(leaderboard(read_runs(runs))).split()
    )
    for rate in (0.1, 0.2, 0.3):
        overrides = {"optimizer": {"base_lr": rate}}
        fake_run("lw_fedssl@v3", 0.6, figures={"client/local_steps": 18.0}, overrides=overrides)
    words = " ".join(render(leaderboard(read_runs(runs))).split())
    assert "Local steps unlike fedssl's: 4 rows of lw_fedssl@v3, prog_fedssl 0.75x (" in words


def test_figures_that_an_older_run_did_not_note_are_dashes(fake_run: Fake, runs: Path) -> None:
    run = fake_run("fedssl", 0.7)
    summary = run.summary()
    for key in ("client/local_steps", "server/peak_memory_bytes", "server/flops", "all_clients/flops"):
        del summary[key]
    rewrite(run.path, "summary.json", summary)
    (row,) = leaderboard(read_runs(runs))
    assert (row.local_steps, row.server_flops, row.total_flops, row.total_flops_ratio) == (None,) * 4
    assert "| - " in render([row])


@pytest.mark.parametrize(
    "other",
    [
        {"data_hash": "d2", "figures": {"evaluations": [EVALUATION]}},
        {"overrides": {"encoder": {"depth": 2}}},
        {"overrides": {"federation": {"num_clients": 3}}},
        {"overrides": {"data": {"partition": {"name": "dirichlet"}}}},
        {"figures": {"evaluations": [{**EVALUATION, "settings": {"epochs": 7}}]}},
        {"figures": {"evaluations": [{**EVALUATION, "data_hash": "d2"}]}},
        {"protocols": ("knn",)},
        {"figures": {"convention": "paper-v4"}},
    ],
    ids=["data", "encoder", "clients", "partition", "settings", "judged on", "protocol", "convention"],
)
def test_runs_that_differ_in_this_are_never_ranked_together(fake_run: Fake, runs: Path, other: dict) -> None:
    fake_run("fedssl", 0.6)
    fake_run("lw_fedssl", 0.9, **other)
    rows = leaderboard(read_runs(runs))
    assert sorted(row.table for row in rows) == [1, 2]
    (lw,) = [row for row in rows if row.strategy == "lw_fedssl"]
    assert lw.upload_ratio is None
    assert render(rows).count("###") == 2


def test_tracking_and_the_place_of_the_data_do_not_split_the_seeds(fake_run: Fake, runs: Path) -> None:
    for seed, path in enumerate(("here.npz", "there.npz")):
        keys = {"data": {"name": "npz", "path": path}, "tracking": {"group": path}}
        fake_run("fedssl", 0.6, seed=seed, overrides=keys)
    (row,) = leaderboard(read_runs(runs))
    assert row.seeds == (0, 1)


def test_rows_alike_in_name_say_in_what_they_differ_and_each_has_its_own_reference(
    fake_run: Fake, runs: Path
) -> None:
    for rounds, cost in ((4, 1.0), (12, 3.0)):
        keys = {"federation": {"rounds": rounds}}
        fake_run("fedssl", 0.6, overrides=keys, cost=cost)
        fake_run("lw_fedssl", 0.5, overrides=keys, cost=cost / 4)
    rows = leaderboard(read_runs(runs))
    assert {row.variant for row in rows} == {"federation.rounds=4", "federation.rounds=12"}
    assert [row.flops_ratio for row in rows if row.strategy == "lw_fedssl"] == pytest.approx([0.25, 0.25])
    assert "federation.rounds=12" in render(rows)


def test_ratios_are_blank_without_a_fedssl_row_of_the_same_ssl_method(fake_run: Fake, runs: Path) -> None:
    fake_run("fedssl", 0.6, ssl="byol")
    fake_run("lw_fedssl", 0.9, ssl="simclr")
    assert leaderboard(read_runs(runs))[0].flops_ratio is None


def test_memories_of_different_meters_have_no_ratio(fake_run: Fake, runs: Path) -> None:
    fake_run("fedssl", 0.6)
    fake_run("lw_fedssl", 0.9, figures={"memory_source": "CUDA allocator"})
    row = leaderboard(read_runs(runs))[0]
    assert row.peak_memory_ratio is None
    assert row.upload_ratio == pytest.approx(1.0)


def test_an_unfinished_run_is_not_on_the_leaderboard(fake_run: Fake, runs: Path) -> None:
    fake_run("fedssl", 0.6)
    (fake_run("lw_fedssl", 0.9).path / "summary.json").unlink()
    (runs / "notes.txt").write_text("not a run")
    assert [row.strategy for row in leaderboard(read_runs(runs))] == ["fedssl"]


def test_the_table_divides_by_the_units_its_footer_names(fake_run: Fake, runs: Path) -> None:
    three_strategies(fake_run)
    text = render(leaderboard(read_runs(runs)))
    lines = [line for line in text.splitlines() if "| lw_fedssl" in line]
    accuracy, costs = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert accuracy[3:] == ["3", "76.0 ± 8.5", "50.0", "+26.0", "-5.0 [-5.0, -5.0]", "24", "12.5"]
    assert costs[2:] == [
        *("2 (0.25x)", "0.5", "10.5 (0.25x)"),
        *("0.75 (0.25x)", "1", "1.25 (0.25x)", "0.5 (0.25x)"),
    ]
    for stated in (
        "10^9 FLOPs",
        "2^20 bytes",
        "10^6 bytes",
        "`step`",
        "Client:",
        "traced live",
        "Seeds 0, 1, 2",
    ):
        assert stated in text


def test_columns_are_aligned_and_fit_a_terminal(fake_run: Fake, runs: Path) -> None:
    three_strategies(fake_run)
    lines = render(leaderboard(read_runs(runs))).splitlines()
    table = [line for line in lines if line.startswith("|")]
    bars = [tuple(index for index, letter in enumerate(line) if letter == "|") for line in table]
    assert len(table) == 2 * 5
    assert [len(set(bars[:5])), len(set(bars[5:]))] == [1, 1]
    assert max(map(len, lines)) <= 140


def test_csv_and_json_hold_base_units(fake_run: Fake, runs: Path) -> None:
    three_strategies(fake_run)
    rows = leaderboard(read_runs(runs))
    write(rows, runs)
    with (runs / "leaderboard.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert table[2]["strategy"] == "lw_fedssl"
    assert float(table[2]["upload_bytes"]) == 500_000
    assert table[2]["seeds"] == "0 1 2"
    assert table[0]["top1_std"] == ""
    content = json.loads((runs / "leaderboard.json").read_text())
    assert content[1]["peak_memory_bytes"] == 3 * 2**20
    assert (runs / "leaderboard.md").read_text(encoding="utf-8") == render(rows)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        read_runs(tmp_path / "nowhere")


def test_no_runs_make_no_table(tmp_path: Path) -> None:
    assert render(leaderboard(read_runs(tmp_path))) == "No finished run.\n"


def test_a_seed_that_was_run_twice_counts_once_and_the_newer_run_counts() -> None:
    from fedbench.reporting.comparison import cells
    from fedbench.tracking.evaluations import Evaluation
    from fedbench.tracking.runs import Run

    def run(started: str, top1: float) -> Run:
        config = {"seed": 0, "data": {"name": "npz", "path": started}}
        config |= {"federation": {"rounds": 1, "num_clients": 2}}
        manifest = {"config": config, "data_hash": "d", "device": "cpu", "sources": {}, "started": started}
        labels = ("strategy", "ssl", "convention", "memory_source", "diverged")
        return Run(
            manifest, dict.fromkeys(labels, "x"), Evaluation("linear", {}, "d", "d", top1, 0.1, None, own=True)
        )

    (cell,) = cells([run("2026-02", 0.7), run("2026-01", 0.5)])
    assert len(cell.runs) == 1
    assert cell.accuracy == 0.7


def test_two_plugin_files_of_one_name_are_two_rows(fake_run: Callable[..., RunDirectory]) -> None:
    first = fake_run("mine.py", 0.6)
    other = fake_run("mine.py", 0.8, seed=1)
    manifest = other.manifest() | {"sources": {"strategy": "another file", "ssl": "s"}}
    rewrite(other.path, "manifest.json", manifest)
    rows = leaderboard(read_runs(first.path.parent))
    assert [row.seeds for row in rows] == [(1,), (0,)]


def test_a_folder_that_is_no_run_is_left_out_with_a_word(
    fake_run: Callable[..., RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    out = fake_run("fedssl", 0.6).path.parent
    for name, content in (("broken", "{"), ("foreign", "{}")):
        (out / name).mkdir()
        for file in ("manifest.json", "summary.json"):
            (out / name / file).write_text(content)
    assert len(read_runs(out)) == 1
    assert "broken is left out" in capsys.readouterr().err


def test_runs_of_different_code_are_said_to_be(fake_run: Fake, tmp_path: Path) -> None:
    for strategy, commit, dirty in (("fedssl", "a" * 40, False), ("lw_fedssl", "b" * 40, True)):
        run = fake_run(strategy, 0.7)
        rewrite(run.path, "manifest.json", {**run.manifest(), "commit": commit, "dirty": dirty})
        text = " ".join(render(leaderboard(read_runs(tmp_path / "runs"))).split())
        assert ("Code: aaaaaaaaaaaa." in text) == (strategy == "fedssl")
    assert (
        "SEVERAL STATES OF THE CODE, whose figures may differ: aaaaaaaaaaaa, bbbbbbbbbbbb+; +: with changes"
        in text
    )


def test_runs_of_different_kernels_are_said_to_be(fake_run: Fake, tmp_path: Path) -> None:
    for strategy, capability in (("fedssl", "AVX2"), ("lw_fedssl", "AVX512")):
        run = fake_run(strategy, 0.7)
        numerics = {"cpu_capability": capability, "environment": {}, "fingerprint": "022f2756"}
        rewrite(run.path, "manifest.json", {**run.manifest(), "numerics": numerics})
        text = " ".join(render(leaderboard(read_runs(tmp_path / "runs"))).split())
        assert ("CPU kernels: AVX2 022f2756;" in text) == (strategy == "fedssl")
    assert (
        "SEVERAL KINDS OF CPU KERNELS, which round differently, so seeds do not pair: AVX2 022f2756, AVX" in text
    )
