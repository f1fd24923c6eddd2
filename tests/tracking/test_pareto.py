import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from matplotlib.image import imread

from fedbench.reporting.leaderboard import leaderboard, read_runs
from fedbench.reporting.pareto import PANELS, _columns, _figure, like_measured, pareto_front, plot
from fedbench.tracking.run_directory import RunDirectory

Fake = Callable[..., RunDirectory]


def naive_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    front = []
    for cost, accuracy in points:
        dominated = False
        for other_cost, other_accuracy in points:
            no_worse = other_cost <= cost and other_accuracy >= accuracy
            dominated |= no_worse and (other_cost < cost or other_accuracy > accuracy)
        front.append(not dominated)
    return front


@pytest.mark.parametrize("seed", range(50))
def test_the_front_is_that_of_the_naive_double_with_many_ties(seed: int) -> None:
    draw = random.Random(seed)
    points = [(draw.randrange(8), draw.randrange(8) / 8) for _ in range(draw.randrange(1, 30))]
    assert pareto_front(points) == naive_front(points)


def test_the_front_by_hand() -> None:
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.4), (1.0, 0.6), (3.0, 0.9), (4.0, 0.9)]
    assert pareto_front(points) == [True, False, False, True, True, False]
    assert pareto_front([]) == []


def test_the_picture_shows_every_strategy_in_its_units_with_the_floor(fake_run: Fake, tmp_path: Path) -> None:
    for seed in (0, 1):
        fake_run("fedssl", 0.8 + seed / 10, seed=seed)
        fake_run("lw_fedssl", 0.7 + seed / 10, seed=seed, cost=0.1)
    figure = _figure(leaderboard(read_runs(tmp_path / "runs")))
    for axis, expected in zip(figure.axes, (8, 42, 3, 5, 2), strict=True):
        series = {bars.get_label(): bars.lines[0].get_xydata().tolist()[0] for bars in axis.containers}
        assert series["fedssl"] == pytest.approx([expected, 85])
        assert series["lw_fedssl"] == pytest.approx([expected / 10, 75], rel=1e-5)
        assert axis.get_xscale() == "log"  # the costs span a factor of 10
        assert [line.get_ydata()[0] for line in axis.lines if "floor" in str(line.get_label())] == [50]
    assert "n = 2 seeds" in figure.get_suptitle()
    assert len(figure.legends[0].get_texts()) == 4


def test_a_long_legend_leaves_the_panels_their_height(fake_run: Fake, tmp_path: Path) -> None:
    """Twenty rows, each with a legend's line of its own."""
    heights = []
    for count in (2, 20):
        for number in range(count):
            rate = (number + 1) / 1000
            long = {"ssl": {"temperature": rate}, "optimizer": {"base_lr": rate, "weight_decay": rate}}
            fake_run("fedssl", 0.5 + rate, overrides=long)
        figure = _figure(leaderboard(read_runs(tmp_path / "runs")))
        figure.draw_without_rendering()
        heights.append(figure.axes[0].get_window_extent().height)
        legend = figure.legends[0].get_window_extent()
        assert legend.y1 < figure.axes[0].get_window_extent().y0
    assert heights[1] > 0.8 * heights[0]


@pytest.mark.parametrize(
    ("lengths", "columns"),
    [([10] * 4, 4), ([10] * 9, 7), ([17, 12, 6, 11, 57, 12], 3), ([60, 60, 60], 1), ([200, 1], 1)],
)
def test_the_legend_has_as_many_columns_as_fit(lengths: list[int], columns: int) -> None:
    assert _columns(["x" * length for length in lengths]) == columns


def test_a_run_without_a_client_is_no_meter_of_its_own(fake_run: Fake, tmp_path: Path) -> None:
    fake_run("fedssl", 0.8)
    fake_run("lw_fedssl", 0.5, cost=0, figures={"memory_source": ""})
    rows = leaderboard(read_runs(tmp_path / "runs"))
    assert [sorted(row.strategy for row in group) for panel in PANELS for group in like_measured(rows, panel)] == [
        ["fedssl", "lw_fedssl"]
    ] * 5


def test_costs_within_a_factor_of_five_are_drawn_from_zero(fake_run: Fake, tmp_path: Path) -> None:
    fake_run("fedssl", 0.8)
    fake_run("prog_fedssl", 0.7, cost=0.25)
    for axis in _figure(leaderboard(read_runs(tmp_path / "runs"))).axes:
        assert (axis.get_xscale(), axis.get_xlim()[0]) == ("linear", 0)


def test_tables_that_cannot_be_compared_get_a_picture_each(fake_run: Fake, tmp_path: Path) -> None:
    fake_run("fedssl", 0.8)
    fake_run("fedssl", 0.7, data_hash="d2")
    paths = plot(leaderboard(read_runs(tmp_path / "runs")), tmp_path / "pareto.png")
    assert [path.name for path in paths] == ["pareto.png", "pareto-2.png"]
    assert all(imread(path).std() > 0.05 for path in paths)
