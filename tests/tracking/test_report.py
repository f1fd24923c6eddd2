"""`report`, on hand-made runs: what it gathers, whom it calls the best, and a safe and self-contained page."""

import csv
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_page import CHROMIUM, add_rounds, browse, page_of, without_bokeh

from fedbench.cli import main
from fedbench.errors import UserError
from fedbench.reporting.iso_budget import best_within, iso_budgets, levels
from fedbench.reporting.leaderboard import leaderboard, render, write
from fedbench.reporting.pareto import PANELS, front
from fedbench.reporting.ranking import Row
from fedbench.reporting.report import report
from fedbench.tracking.run_directory import RunDirectory
from fedbench.tracking.runs import gather, wandb_id

Fake = Callable[..., RunDirectory]
COMPUTE, TOTAL, MEMORY, DOWNLOAD, UPLOAD = PANELS
HOSTILE = "</script><img src=x onerror=console.error('owned')> $$x$$ | <%= 1 %>"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def rows_of(*paths: Path) -> list[Row]:
    return leaderboard(gather(paths)[0])


def test_a_row_names_its_run_directories_from_where_it_is_read(fake_run: Fake, runs: Path, tmp_path: Path) -> None:
    here = [fake_run("fedssl", 0.8, seed=seed).path for seed in (1, 0)]
    write(rows_of(runs), runs)
    report([runs], tmp_path / "a" / "out")
    for folder, name in ((runs, "leaderboard"), (tmp_path / "a" / "out", "report")):
        (row,) = json.loads((folder / f"{name}.json").read_text())["rows" if name == "report" else slice(None)]
        assert [(folder / path).resolve() for path in row["runs"]] == here[::-1]
        with (folder / f"{name}.csv").open(newline="") as file:
            (line,) = csv.DictReader(file)
        assert shlex.split(line["runs"]) == row["runs"]


def test_a_row_names_its_wandb_runs_as_they_were_told(fake_run: Fake, runs: Path) -> None:
    fake_run("fedssl", 0.8, seed=0, overrides={"tracking": {"project": "p"}})
    online = fake_run("fedssl", 0.8, seed=1).path
    (online / "wandb").mkdir()
    (online / "wandb" / "address.txt").write_text("https://here/e/p/runs/i\n")
    fake_run("fedssl", 0.8, seed=2, overrides={"tracking": {"wandb": "disabled"}})
    (row,) = rows_of(runs)
    manifest = json.loads((runs / row.runs[0] / "manifest.json").read_text())
    assert row.wandb == (f"p/{wandb_id(manifest)}", "https://here/e/p/runs/i", "")


def test_the_table_says_how_its_rows_were_trained_and_in_what_they_differ(fake_run: Fake, runs: Path) -> None:
    keys = {"federation": {"rounds": 6, "local_epochs": 3, "participants": 2}}
    fake_run("fedssl", 0.8, overrides={**keys, "optimizer": {"batch_size": 128, "base_lr": 0.004}})
    text = " ".join(render(rows_of(runs)).split())
    assert (
        "Trained: 6 rounds; 3 local epoch(s); batch 128; learning rate 0.002; 2 client(s) a round; augmentation "
        "batched min_scale=0.08 " in text
    )
    fake_run("lw_fedssl", 0.8, overrides={**keys, "optimizer": {"batch_size": 64, "base_lr": 0.004}})
    text = " ".join(render(rows_of(runs)).split())
    assert "Trained: 6 rounds; 3 local epoch(s); 2 client(s) a round; augmentation batched " in text
    assert "Unlike, see `settings`: batch size, learning rate." in text


def test_two_folders_of_one_name_have_two_titles(fake_run: Fake, runs: Path) -> None:
    for data_hash in ("0123456789", "abcdef0123"):
        fake_run("fedssl", 0.8, data_hash=data_hash)
    assert [row.title[-14:] for row in rows_of(runs)] == [" data 01234567", " data abcdef01"]


def latex_rows(out: Path) -> list[list[str]]:
    """The cells of every line of every tabular."""
    lines = (out / "report.tex").read_text().splitlines()
    cells = (re.split(r"(?<!\\)&", line.removesuffix(r"\\")) for line in lines if line.endswith(r" \\"))
    return [[cell.strip() for cell in row] for row in cells]


def test_latex_holds_both_tables_with_what_is_special_in_names_escaped(
    fake_run: Fake, runs: Path, tmp_path: Path
) -> None:
    for seed, top1 in enumerate((0.7, 0.8)):
        fake_run("fedssl", top1, seed=seed)
        fake_run("b", top1 - 0.06, seed=seed, figures={"strategy": "a_b&50%$^~\\{x}#\n\\input{y}"})
    report([runs], tmp_path / "out", latex=True)
    header, fedssl, hostile, *costs = latex_rows(tmp_path / "out")
    assert header[:2] == [r"\#", "strategy"]
    name = r"a\_b\&50\%\$\textasciicircum{}\textasciitilde{}\textbackslash{}\{x\}\# \textbackslash{}input\{y\}"
    assert hostile[1] == name
    assert (fedssl[4], hostile[4], hostile[7]) == (
        r"\textbf{75.0 $\pm$ 7.1}",
        r"69.0 $\pm$ 7.1",
        "$-$6.0 {[}$-$6.0, $-$6.0]",
    )
    assert [len(row) for row in (header, fedssl, hostile)] == [11] * 3
    assert [row[0] for row in costs] == ["strategy", "fedssl", name]
    source = (tmp_path / "out" / "report.tex").read_text()
    assert source.count(r"\begin{tabular}") == source.count(r"\end{tabular}") == 2
    assert not [line for line in source.splitlines() if "input{y}" in line and not line.startswith(("%", "  "))]


def test_latex_sets_nobody_in_bold_whom_no_interval_separates(fake_run: Fake, runs: Path, tmp_path: Path) -> None:
    for seed, (one, other) in enumerate(((0.7, 0.6), (0.8, 0.85))):
        fake_run("fedssl", one, seed=seed)
        fake_run("b", other, seed=seed)
    report([runs], tmp_path / "out", latex=True)
    assert r"\textbf" not in (tmp_path / "out" / "report.tex").read_text()


def test_seeds_from_several_folders_are_one_row(fake_run: Fake, runs: Path, tmp_path: Path) -> None:
    for seed, top1 in enumerate((0.7, 0.8, 0.9)):
        run = fake_run("fedssl", top1, seed=seed)
    shutil.move(run.path, tmp_path / "elsewhere")
    report([runs, tmp_path / "elsewhere", runs], tmp_path / "out")
    (row,) = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert row["seeds"] == [0, 1, 2]
    assert row["top1_mean"] == pytest.approx(0.8)
    assert row["top1_std"] == pytest.approx(0.1)


def test_all_five_files_are_written_and_the_table_is_printed(
    fake_run: Fake, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_rounds(fake_run("fedssl", 0.8), 3.0, 2.0)
    assert main(["report", str(runs), "--out", str(tmp_path / "out")]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"report.{suffix}" for suffix in ("md", "csv", "json", "png", "html")}
    assert (tmp_path / "out" / "report.md").read_text() in capsys.readouterr().out


def test_missing_seeds_are_named(fake_run: Fake, runs: Path, tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        fake_run("fedssl", 0.8, seed=seed)
    fake_run("lw_fedssl", 0.7, seed=1)
    text = report([runs], tmp_path / "out")
    assert [row.missing_seeds for row in rows_of(runs)] == [(), (0, 2)]
    assert "Missing seeds: lw_fedssl lacks 0, 2." in text
    assert "Missing seeds: lw_fedssl lacks 0, 2." in page_of(tmp_path / "out")


def test_other_tables_do_not_make_a_seed_missing(fake_run: Fake, runs: Path) -> None:
    fake_run("fedssl", 0.8, seed=0)
    fake_run("fedssl", 0.8, seed=1, data_hash="d2")
    assert [row.missing_seeds for row in rows_of(runs)] == [(), ()]


def test_a_seed_that_diverged_is_not_missing_but_left_out_of_the_mean_and_said_so(
    fake_run: Fake, runs: Path, tmp_path: Path
) -> None:
    fake_run("fedssl", 0.8, seed=0)
    fake_run("fedssl", 0.9, seed=1, figures={"diverged": True})
    text = report([runs], tmp_path / "out")
    diverged, sound = rows_of(runs)
    assert (sound.diverged, sound.seeds, sound.missing_seeds, sound.diverged_seeds) == (False, (0,), (), (1,))
    assert (diverged.diverged, diverged.missing_seeds, diverged.diverged_seeds) == (True, (), ())
    assert "Means without the seeds that diverged: fedssl without 1." in text


def test_costs_stay_relative_to_fedssl_when_one_of_its_seeds_diverged(fake_run: Fake, runs: Path) -> None:
    fake_run("fedssl", 0.8, seed=0)
    fake_run("fedssl", 0.9, seed=1, figures={"diverged": True})
    fake_run("lw_fedssl", 0.7, cost=0.5)
    assert [row.upload_ratio for row in rows_of(runs)] == [1.0, 1.0, 0.5]


def test_a_diverged_run_is_on_no_front_and_never_best(fake_run: Fake, runs: Path) -> None:
    fake_run("fedssl", 0.8)
    fake_run("lw_fedssl", 0.9, cost=0.1, figures={"diverged": True})
    rows = rows_of(runs)
    assert [row.strategy for row in front(rows, UPLOAD)] == ["fedssl"]
    answers = [answer for answer in iso_budgets(rows) if answer.panel == UPLOAD]
    assert [(answer.limit, [row.strategy for row in answer.best]) for answer in answers] == [
        (0.2, []),
        (2.0, ["fedssl"]),
    ]


def test_only_diverged_runs_still_make_a_report(fake_run: Fake, runs: Path, tmp_path: Path) -> None:
    run = fake_run("fedssl", 0.1, figures={"diverged": True})
    add_rounds(run, 3.0, math.nan, math.inf)
    text = report([runs], tmp_path / "out")
    assert "fedssl (diverged)" in text
    assert "nobody is above the floor" in text


def test_who_is_best_within_a_budget_by_hand(fake_run: Fake, runs: Path) -> None:
    for name, top1, cost in (("a", 0.6, 0.5), ("b", 0.8, 1.0), ("c", 0.7, 2.0), ("d", 0.9, 3.0)):
        for seed in (0, 1):
            fake_run(name, top1, cost=cost, seed=seed)
    answers = [answer for answer in iso_budgets(rows_of(runs)) if answer.panel == UPLOAD]
    found = [(answer.budget, answer.within, *(row.strategy for row in answer.best)) for answer in answers]
    assert found == [
        ("1 MB upload", 1, "a"),
        ("2 MB upload", 2, "b"),
        ("4 MB upload", 3, "b"),
        ("6 MB upload", 4, "d"),
    ]


def test_every_resource_is_judged_by_its_own_cost(fake_run: Fake, runs: Path) -> None:
    fake_run("a", 0.6)
    cheap = {"client/flops": 1e9, "client/peak_memory_bytes": 8 * 2**20, "client/download_bytes": 9e6}
    fake_run("b", 0.7, figures={**cheap, "client/upload_bytes": 3e6})
    rows = rows_of(runs)
    best = {panel.field: best_within(rows, panel, levels(rows, panel)[0])[0].strategy for panel in PANELS}
    assert best == {
        "flops": "b",
        "total_flops": "b",
        "peak_memory_bytes": "a",
        "download_bytes": "a",
        "upload_bytes": "a",
    }


def test_what_no_interval_separates_from_the_best_stands_behind_it(fake_run: Fake, runs: Path) -> None:
    for name, top1 in (("a", (0.70, 0.80)), ("b", (0.75, 0.76)), ("c", (0.60, 0.61))):
        for seed, value in enumerate(top1):
            fake_run(name, value, seed=seed)
    assert [row.strategy for row in best_within(rows_of(runs), UPLOAD, 2.0)] == ["b", "a"]
    fake_run("d", 0.9, seed=0)
    assert [row.strategy for row in best_within(rows_of(runs), UPLOAD, 2.0)] == ["d", "b", "a", "c"]  # one seed


def test_what_is_no_better_than_doing_nothing_is_never_best(fake_run: Fake, runs: Path) -> None:
    fake_run("a", 0.5, cost=0.1)
    fake_run("b", 0.6)
    rows = rows_of(runs)
    assert [row.strategy for row in front(rows, UPLOAD)] == ["b"]
    assert best_within(rows, UPLOAD, 0.2) == ()


def test_equally_accurate_rows_share_the_place(fake_run: Fake, runs: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        fake_run(name, 0.7)
    rows = rows_of(runs)
    assert [row.strategy for row in best_within(rows, UPLOAD, 2.0)] == ["a", "b"]
    assert "| 2 MB upload | a, b |" in " ".join(report([runs], tmp_path / "out").split())


def test_nobody_is_best_within_less_than_the_cheapest_costs(fake_run: Fake, runs: Path) -> None:
    fake_run("a", 0.7)
    assert best_within(rows_of(runs), UPLOAD, 1.99) == ()
    assert len(best_within(rows_of(runs), UPLOAD, 2.0)) == 1


@pytest.mark.parametrize(
    ("upload_bytes", "limit"),
    [
        (5_001_000, 5.01),
        (5_000_000, 5.0),
        (1_234_567_890, 1235.0),
        (999_600_000, 1000.0),
        (123.4, 0.000124),
        (0, 0),
    ],
)
def test_a_budget_is_rounded_up_so_that_what_it_names_fits(
    fake_run: Fake, runs: Path, upload_bytes: float, limit: float
) -> None:
    fake_run("a", 0.7, figures={"client/upload_bytes": upload_bytes})
    (row,) = rows_of(runs)
    assert levels([row], UPLOAD) == [limit]
    assert best_within([row], UPLOAD, limit) == (row,)


def test_memories_of_different_meters_are_not_set_against_each_other(fake_run: Fake, runs: Path) -> None:
    fake_run("a", 0.9)
    fake_run("b", 0.7, cost=2.0, figures={"memory_source": "CUDA allocator"})
    rows = rows_of(runs)
    answers = [answer for answer in iso_budgets(rows) if answer.panel == MEMORY]
    assert {(answer.source, answer.best[0].strategy) for answer in answers} == {
        ("traced live tensors, CPU", "a"),
        ("CUDA allocator", "b"),
    }
    assert len(front(rows, MEMORY)) == 2
    assert [row.strategy for row in front(rows, UPLOAD)] == ["a"]


def test_json_holds_fronts_and_budgets_in_base_units(fake_run: Fake, runs: Path, tmp_path: Path) -> None:
    fake_run("fedssl", 0.8)
    fake_run("lw_fedssl", 0.7, cost=0.5)
    report([runs], tmp_path / "out")
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    fields = ["flops", "total_flops", "peak_memory_bytes", "download_bytes", "upload_bytes"]
    assert [row["pareto_front"] for row in content["rows"]] == [fields, fields]
    uploads = [line for line in content["budgets"] if line["resource"] == "upload_bytes"]
    assert [(line["limit"], line["best"]) for line in uploads] == [(1_000_000, [1]), (2_000_000, [0, 1])]


class Loads(HTMLParser):
    """Addresses that a browser would fetch by itself, and the tags that it would build."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "a":  # followed by a reader alone
            return
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]


def test_the_page_loads_nothing_from_anywhere(fake_run: Fake, runs: Path, tmp_path: Path) -> None:
    add_rounds(fake_run("fedssl", 0.8), 3.0, 2.0)
    report([runs], tmp_path / "out")
    loads = Loads()
    loads.feed(page_of(tmp_path / "out"))
    assert loads.addresses == ["data:,"]  # the icon that keeps a browser from asking for one
    assert not re.search(r"https?:|@import", without_bokeh(page_of(tmp_path / "out")))


def test_what_others_wrote_is_escaped(fake_run: Fake, runs: Path, tmp_path: Path) -> None:
    add_rounds(fake_run("a", 0.8, figures={"strategy": HOSTILE, "memory_source": HOSTILE, "ssl": HOSTILE}), 3.0)
    broken = runs / "<img src=x>"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    text = report([runs], tmp_path / "out")
    page = page_of(tmp_path / "out")
    assert HOSTILE not in page
    assert "&lt;img src=x" in page
    loads = Loads()
    loads.feed(page)
    assert "img" not in loads.tags
    (line,) = [line for line in text.splitlines() if line.startswith("| - ")]
    assert line.replace("\\|", "").count("|") == 12  # 11 columns


def test_curves_are_drawn_per_client_and_what_was_not_measured_is_said(
    fake_run: Fake, runs: Path, tmp_path: Path
) -> None:
    add_rounds(fake_run("fedssl", 0.8, overrides={"federation": {"num_clients": 3}}), 3.0, 2.0)
    fake_run("lw_fedssl", 0.7, overrides={"federation": {"num_clients": 3}})
    report([runs], tmp_path / "out")
    page = without_bokeh(page_of(tmp_path / "out"))
    assert '["megabytes",[3.0,6.0]]' in page
    assert "Accuracy over rounds was not measured in these runs." in page
    assert "No readable rounds.jsonl, so no curve: lw_fedssl seed 0." in page


def test_accuracy_over_rounds_is_drawn_where_it_was_measured(fake_run: Fake, runs: Path, tmp_path: Path) -> None:
    add_rounds(fake_run("fedssl", 0.8), 3.0, 2.0, accuracy=0.625)
    add_rounds(fake_run("lw_fedssl", 0.7), 3.0)
    report([runs], tmp_path / "out")
    page = without_bokeh(page_of(tmp_path / "out"))
    assert '["accuracy",[62.5,62.5]]' in page
    assert "Accuracy over rounds was not measured in lw_fedssl seed 0." in page


def test_the_conventions_stand_on_the_page(fake_run: Fake, runs: Path, tmp_path: Path) -> None:
    fake_run("fedssl", 0.8)
    report([runs], tmp_path / "out")
    for stated in (
        "Protocol linear: a linear classifier on the frozen",
        "Convention step",
        "Memory source: traced live",
        "2^20 bytes",
        "Seeds 0",
    ):
        assert stated in page_of(tmp_path / "out")


def test_without_a_finished_run_it_says_what_was_found(fake_run: Fake, runs: Path, tmp_path: Path) -> None:
    (fake_run("fedssl", 0.8).path / "summary.json").unlink()
    with pytest.raises(UserError, match=r"no finished run in .*fedssl-.*not finished"):
        report([runs], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert main(["report", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2


@pytest.mark.parametrize("content", ["{", "[]", "{}", "null", '{"config": 1}'])
def test_a_directory_that_is_no_run_is_left_out(fake_run: Fake, runs: Path, content: str) -> None:
    fake_run("fedssl", 0.8)
    (runs / "strange").mkdir()
    for file in ("manifest.json", "summary.json"):
        (runs / "strange" / file).write_text(content)
    found, left_out = gather([runs])
    assert len(found) == 1
    assert list(left_out) == [runs / "strange"]
    told = left_out[runs / "strange"]
    assert told == "its files are not those of a run" or told.startswith("manifest.json: ")


def test_what_is_left_out_is_named(fake_run: Fake, runs: Path, tmp_path: Path) -> None:
    fake_run("fedssl", 0.8)
    (runs / "strange").mkdir()
    (runs / "strange" / "manifest.json").write_text("{")
    text = report([runs], tmp_path / "out")
    assert "strange: it is not finished" in " ".join(text.split())
    assert "strange: it is not finished" in page_of(tmp_path / "out")
    assert "strange" in (tmp_path / "out" / "report.json").read_text()


@pytest.mark.parametrize("figure", ["seconds", "client/flops", "untrained/linear_top1", "convention"])
def test_a_summary_without_a_figure_of_the_table_is_left_out(fake_run: Fake, runs: Path, figure: str) -> None:
    fake_run("fedssl", 0.8, figures={figure: None})
    assert rows_of(runs) == []


def test_a_file_that_cannot_be_opened_is_named(fake_run: Fake, runs: Path, tmp_path: Path) -> None:
    fake_run("fedssl", 0.8)
    bad = fake_run("lw_fedssl", 0.8).path
    (bad / "manifest.json").chmod(0)
    if os.access(bad / "manifest.json", os.R_OK):
        pytest.skip("root may read everything")
    assert "cannot be read" in report([runs], tmp_path / "out")


def test_a_broken_rounds_file_costs_the_curve_and_nothing_else(fake_run: Fake, runs: Path, tmp_path: Path) -> None:
    for name, content in (("a", "{"), ("b", ""), ("c", "{}\n")):
        (fake_run(name, 0.8).path / "rounds.jsonl").write_text(content)
    report([runs], tmp_path / "out")
    assert "so no curve: a seed 0, b seed 0, c seed 0." in page_of(tmp_path / "out")


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys, fedbench.reporting.report as r; assert not {'torch', 'pyarrow'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys; from fedbench.cli import parser; parser(); assert 'bokeh' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_page_without_an_error_even_with_hostile_labels(
    fake_run: Fake, runs: Path, tmp_path: Path
) -> None:
    add_rounds(fake_run("a", 0.8, figures={"strategy": HOSTILE}), 3.0, math.nan, 2.0, accuracy=0.6)
    fake_run("b", 0.7, cost=0.1, figures={"diverged": True})
    report([runs], tmp_path / "out")
    log = browse(tmp_path / "out" / "report.html", tmp_path / "profile")
    said = [line for line in log.splitlines() if "CONSOLE" in line]
    assert any("document idle" in line for line in said)
    assert not [line for line in said if re.search("error|owned|Uncaught", line, re.I)]
