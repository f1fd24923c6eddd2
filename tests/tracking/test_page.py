"""The page of `report`: its curves, its table to sort, its links, and what it answers to a reader's budgets."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from report_page import CHROMIUM, add_rounds, page_of, play, without_bokeh

from fedbench.reporting.curves import Curve, over_seeds
from fedbench.reporting.iso_budget import best_within, choices
from fedbench.reporting.leaderboard import leaderboard
from fedbench.reporting.pareto import PANELS
from fedbench.reporting.report import report, write_page
from fedbench.tracking.run_directory import RunDirectory
from fedbench.tracking.runs import read_runs

Fake = Callable[..., RunDirectory]
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
TABLE = "document.querySelector('table.rows')"
NAMES = f"[...{TABLE}.tBodies[0].rows].map((row) => row.cells[0].innerText)"


def curve(*accuracies: float, cost: float = 1.0) -> Curve:
    count = len(accuracies)
    so_far = tuple(cost * number for number in range(1, count + 1))
    return Curve(tuple(range(count)), (1,) * count, (1.0,) * count, so_far, so_far, accuracies)


def test_a_curve_has_the_rounds_that_every_seed_measured_with_mean_and_range() -> None:
    nan = math.nan
    points = over_seeds([curve(nan, 60.0, nan, 70.0), curve(50.0, 64.0, nan, 78.0, cost=3.0)], "accuracy")
    assert points == {
        "rounds": [1, 3],
        "stages": [1, 1],
        "megabytes": [4.0, 8.0],
        "gflops": [4.0, 8.0],
        "accuracy": [62.0, 74.0],
        "low": [60.0, 70.0],
        "high": [64.0, 78.0],
    }


def test_accuracy_measured_now_and_then_is_a_line_without_gaps_over_rounds_bytes_and_flops(
    fake_run: Fake, tmp_path: Path
) -> None:
    run = fake_run("fedssl", 0.8, overrides={"federation": {"num_clients": 3}})
    add_rounds(run, 3.0, 2.0, 1.5, 1.0, accuracy=0.625, every=2)
    report([tmp_path / "runs"], tmp_path / "out")
    page = without_bokeh(page_of(tmp_path / "out"))
    for column in (
        '["accuracy",[62.5,62.5]]',
        '["rounds",[1,3]]',
        '["megabytes",[6.0,12.0]]',
        '["gflops",[10.0,20.0]]',
        '["y",[50.0,50.0]]',  # the floor
    ):
        assert column in page
    assert "NaN" not in page


def test_the_page_links_every_run_directory_and_only_addresses_of_the_web(fake_run: Fake, tmp_path: Path) -> None:
    for seed, address in enumerate(("https://here/e/p/runs/i", "javascript:alert(1)")):
        path = fake_run("fedssl", 0.8, seed=seed).path
        (path / "wandb").mkdir()
        (path / "wandb" / "address.txt").write_text(address)
        path.rename(path.with_name(f"a b#{seed}"))
    report([tmp_path / "runs"], tmp_path / "out")
    page = page_of(tmp_path / "out")
    for seed in (0, 1):
        assert f'<a href="../runs/a%20b%23{seed}/" title="../runs/a b#{seed}">seed {seed}</a>' in page
    assert '<a href="https://here/e/p/runs/i">' in page
    assert 'href="javascript' not in page


def test_the_page_beside_the_runs_links_them_by_their_names(fake_run: Fake, tmp_path: Path) -> None:
    run = fake_run("fedssl", 0.8).path
    page = write_page([run.parent], run.parent)
    assert page is not None
    assert f'<a href="{run.name}/"' in page.read_text()


def test_what_the_page_answers_from_is_who_is_best_within_a_budget(fake_run: Fake, tmp_path: Path) -> None:
    for name, tops, cost in (("a", (0.60, 0.62), 0.5), ("b", (0.70, 0.72), 1.0), ("c", (0.69, 0.76), 2.0)):
        for seed, top1 in enumerate(tops):
            fake_run(name, top1, cost=cost, seed=seed)
    fake_run("d", 0.4, cost=0.1)  # below the floor of 0.5
    rows = leaderboard(read_runs(tmp_path / "runs"))
    data = choices(rows)["rows"]
    assert {row["name"]: [data[at]["name"] for at in row["better_than"]] for row in data} == {
        "c": [],
        "b": ["a"],
        "a": [],
    }
    for panel in PANELS:
        for limit in (row["costs"][panel.field] for row in data):
            within = [row for row in data if row["costs"][panel.field] <= limit]
            best = within[0]  # rows are in the order of their means
            like = [row["name"] for row in within if data.index(row) not in best["better_than"]]
            assert like == [row.strategy for row in best_within(rows, panel, limit)]


def test_the_page_says_that_memories_of_several_meters_are_compared(fake_run: Fake, tmp_path: Path) -> None:
    def asked() -> list[str]:
        return [budget["name"] for budget in choices(leaderboard(read_runs(tmp_path / "runs")))["budgets"]]

    fake_run("a", 0.8)
    assert "client peak memory (MiB)" in asked()
    fake_run("b", 0.7, figures={"memory_source": "CUDA allocator"})
    assert "client peak memory (MiB), by several meters" in asked()


def test_names_in_the_data_of_the_page_end_no_script(fake_run: Fake, tmp_path: Path) -> None:
    fake_run("a", 0.8, figures={"strategy": "</script><b>&"})
    report([tmp_path / "runs"], tmp_path / "out")
    assert r'"name": "\u003c/script\u003e\u003cb\u003e\u0026"' in page_of(tmp_path / "out")


def three(fake_run: Fake, tmp_path: Path) -> Path:
    """Accuracies a < b < c, costs c < a < b; b and c are not separated; c did not note its total FLOPs."""
    for name, tops, cost in (("a", (0.60, 0.62), 1.0), ("b", (0.70, 0.72), 2.0), ("c", (0.69, 0.76), 0.5)):
        for seed, top1 in enumerate(tops):
            unknown = {"server/flops": None, "total/flops": None} if name == "c" else {}
            add_rounds(fake_run(name, top1, cost=cost, seed=seed, figures=unknown), 3.0, 2.0)
    report([tmp_path / "runs"], tmp_path / "out")
    return tmp_path / "out"


@in_a_browser
def test_the_first_click_on_a_head_puts_the_best_first_and_what_is_unknown_stays_last(
    fake_run: Fake, tmp_path: Path
) -> None:
    click = f"[...{TABLE}.querySelectorAll('button')].find((one) => one.innerText === TITLE).click()"
    steps = [
        f"{click.replace('TITLE', repr(title))}; seen.push({NAMES}.join(''));"
        for title in ("top-1 %", "up MB", "up MB", "all GFLOPs", "all GFLOPs", "strategy")
    ]
    seen = play(three(fake_run, tmp_path), f"const seen = []; {' '.join(steps)} return seen")
    assert seen == ["cba", "cab", "bac", "abc", "bac", "abc"]


@in_a_browser
def test_the_page_names_the_best_within_the_budgets_that_are_typed(fake_run: Fake, tmp_path: Path) -> None:
    script = """
      const form = document.querySelector("form"), seen = [];
      const typed = [["upload_bytes", ""], ["upload_bytes", "2"], ["total_flops", "42"], ["flops", "1"]];
      for (const [name, value] of typed) {
        form.elements[name].value = value;
        form.elements[name].dispatchEvent(new Event("input", {bubbles: true}));
        seen.push(form.querySelector("output").innerText);
      }
      return seen"""
    assert play(three(fake_run, tmp_path), script) == [
        "c (72.5 ± 4.9 %) has the highest mean of 3 row(s) within. "
        "No interval separates it from: b (71.0 ± 1.4 %), a (61.0 ± 1.4 %).",
        "c (72.5 ± 4.9 %) has the highest mean of 2 row(s) within. "
        "No interval separates it from: a (61.0 ± 1.4 %).",
        "a (61.0 ± 1.4 %) has the highest mean of 1 row(s) within.",
        "No row above the floor is within these budgets.",
    ]


@in_a_browser
def test_a_switch_hides_its_row_in_every_picture_and_no_other(fake_run: Fake, tmp_path: Path) -> None:
    script = """
      document.querySelector(".key input").click();
      const drawn = Bokeh.documents.flatMap((one) => one.roots()).flatMap((chart) => chart.renderers);
      const named = (name) => drawn.filter((one) => one.name === name).map((one) => one.visible);
      return [named("table1-row0"), named("table1-row1")]"""
    hidden, others = play(three(fake_run, tmp_path), script)
    assert hidden == [False] * len(others)
    assert others == [True] * len(hidden)
    assert len(hidden) == 5 * 2 + 2 * 3  # dot and bar in five pictures; band, line and dots in two


@in_a_browser
def test_a_phone_shows_accuracies_without_a_swipe(fake_run: Fake, tmp_path: Path) -> None:
    fake_run("d", 0.7, figures={"strategy": "lw_fedssl@v3(calibration.epochs=3, calibration.base_lr=0.0044)"})
    script = f"""
      const box = {TABLE}.tBodies[0].rows[0].cells[2].getBoundingClientRect();
      const wider = document.documentElement.scrollWidth - window.innerWidth;
      return [{TABLE}.tHead.rows[0].cells[2].innerText, box.right, box.bottom, wider]"""
    title, right, bottom, wider = play(three(fake_run, tmp_path), script, "--window-size=390,844")
    assert title == "top-1 %"
    assert right <= 390
    assert bottom <= 844
    assert wider <= 0


@in_a_browser
def test_dark_mode_has_light_letters_on_a_dark_page(fake_run: Fake, tmp_path: Path) -> None:
    script = "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
    out = three(fake_run, tmp_path)
    assert play(out, script) == ["rgb(34, 34, 34)", "rgb(255, 255, 255)"]
    dark = play(out, script, "--blink-settings=preferredColorScheme=0")
    assert dark == ["rgb(230, 230, 230)", "rgb(22, 24, 29)"]


@in_a_browser
def test_the_pointer_finds_a_line_between_two_rounds_that_were_measured(fake_run: Fake, tmp_path: Path) -> None:
    add_rounds(fake_run("a", 0.8), *[3.0] * 12, accuracy=0.7, every=4)
    report([tmp_path / "runs"], tmp_path / "out")
    script = """
      const view = [...Bokeh.index].find((one) => one.model.name === "table1-accuracy-rounds");
      const line = view.model.renderers.find((one) => one.glyph.type === "Line");
      const box = view.canvas_view.events_el.getBoundingClientRect();
      const x = box.left + view.frame.x_scale.compute(8.5), y = box.top + view.frame.y_scale.compute(70);
      const at = {clientX: x, clientY: y, bubbles: true, composed: true, pointerType: "mouse", isPrimary: true};
      for (const name of ["pointerenter", "pointermove"]) {
        view.canvas_view.events_el.dispatchEvent(new PointerEvent(name, at));
      }
      return [line.data_source.data.rounds, line.data_source.inspected.line_indices]"""
    assert play(tmp_path / "out", script) == [[3, 7, 11], [1]]
