"""What `run` shows at its end."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedbench.reporting.ranking import Row, leaderboard, short_name
from fedbench.reporting.terminal import LEGEND, WIDTH, show
from fedbench.tracking.run_directory import RunDirectory
from fedbench.tracking.runs import read_runs

FILES = [Path("runs/leaderboard.md")]
CHANGED = "lw_fedssl@v3(calibration.epochs=3, alignment=None)"
FakeRun = Callable[..., RunDirectory]
MakeRows = Callable[[int], list[Row]]


@pytest.fixture
def make_rows(fake_run: FakeRun, tmp_path: Path) -> MakeRows:
    """Two rows of so many seeds."""

    def make(seeds: int) -> list[Row]:
        for seed in range(seeds):
            fake_run("fedssl", 0.8 + seed / 100, seed=seed)
            fake_run("lw_fedssl", 0.7 + seed / 100, seed=seed, figures={"strategy": CHANGED})
        return leaderboard(read_runs(tmp_path / "runs"))

    return make


def test_the_table_fits_eighty_letters_and_names_its_file_and_legend_once(make_rows: MakeRows) -> None:
    text = show(make_rows(2), FILES)
    assert max(map(len, text.splitlines()[:-1])) <= WIDTH
    assert text.count("runs/leaderboard.md") == 1
    assert " ".join(text.split()).count(LEGEND) == 1


def test_what_was_changed_stands_below_and_the_name_is_short(make_rows: MakeRows) -> None:
    lines = show(make_rows(2), FILES).splitlines()
    (row,) = [line for line in lines if "lw_fedssl@v3" in line]
    assert "[1]" in row
    assert "calibration" not in row
    assert "[1]: calibration.epochs=3, alignment=None" in lines


def test_one_seed_is_said_to_rank_nothing(make_rows: MakeRows) -> None:
    words = "One seed ranks nothing. Type: more"
    assert words in show(make_rows(1), FILES, "Type: more")
    assert words not in show(make_rows(2), FILES, "Type: more")


def test_the_ratio_of_traffic_is_that_of_both_directions_together(make_rows: MakeRows) -> None:
    reference, other = make_rows(2)
    other = replace(other, download_bytes=1e6, upload_bytes=3e6, download_ratio=0.5, upload_ratio=0.25)
    assert "4 (0.29x)" in show([reference, other], FILES)  # (1 + 3) / (2 + 12)


def test_a_label_is_parted_into_a_name_and_what_was_changed() -> None:
    assert short_name("lw_fedssl@v3(alignment=None, a.b=3)") == ("lw_fedssl@v3", ["alignment=None", "a.b=3"])
    assert short_name("lw_fedssl@v3(a=1) (diverged)") == ("lw_fedssl@v3 (diverged)", ["a=1"])
    assert short_name("fedssl (centralised)") == ("fedssl (centralised)", [])


def test_no_run_is_no_table() -> None:
    assert show([], FILES) == "No finished run.\n"
