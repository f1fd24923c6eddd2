"""A run directory that is fetched: a copy from which a run goes on, wherever the line broke."""

import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from fedbench.config import Config
from fedbench.errors import UserError
from fedbench.federation.checkpoint import NAME, PREVIOUS
from fedbench.federation.experiment import prepare
from fedbench.files import write_at
from fedbench.running.cell import cell_name, cell_rounds, run_cell
from fedbench.running.fetched import PREFIX, Change, Outgoing, apply, contents, scratch, unpack
from fedbench.tracking.run_directory import ROUNDS, SUMMARY, RunDirectory

Tiny = Callable[..., Config]


def fetched(config: Config, there: Path, begun: dict[str, bytes] | None = None) -> list[list[Change]]:
    """What a run in `there` sends: after every round, and at its end."""
    experiment = prepare(config)
    folder = there / cell_name(experiment)
    if begun:
        unpack(begun, folder)
    outgoing = Outgoing(folder)
    rounds = [outgoing.changes() for _ in cell_rounds(experiment, there)]
    return [*rounds, outgoing.changes(ended=True)]


def test_wherever_the_line_breaks_the_run_goes_on_with_the_same_bits(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(strategy={"name": "fedssl", "moon": True})  # clients keep something
    sent = fetched(config, tmp_path / "there")
    name = cell_name(prepare(config))
    whole = RunDirectory(tmp_path / "there" / name)
    names = [change.name for change in sent[2]]
    assert names[:3] == ["clients.arrow", "ledger.csv.gz", "rounds.jsonl"]
    assert names[-1] == NAME
    for cut in (2, len(names) - 1, len(names)):
        here = tmp_path / f"cut {cut}"
        (here / name).mkdir(parents=True)
        for changes in [*sent[:2], sent[2][:cut]]:
            apply(changes, here / name)
        outcome = run_cell(prepare(config), here)
        assert f"resumed after round {3 if cut == len(names) else 2}" in outcome.words
        assert RunDirectory(here / name).encoder_digest() == whole.encoder_digest()


def test_a_run_that_arrived_whole_is_the_run(tiny: Tiny, tmp_path: Path) -> None:
    sent = fetched(tiny(tracking={"wandb": "offline"}), tmp_path / "there")
    here = RunDirectory(tmp_path / "here")
    for changes in sent[:-1]:
        apply(changes, here.path)
        assert (here.path / NAME).is_file()
    assert (here.path / PREVIOUS).is_file()
    assert not (here.path / "wandb").exists()  # a run that goes on writes it anew
    apply(sent[-1], here.path)
    (there,) = (tmp_path / "there").iterdir()
    assert contents(here.path) == contents(there)
    assert list((here.path / "wandb").rglob("*.wandb"))
    assert here.damage() == []
    assert sent[-1][-2].name == SUMMARY  # and then the checkpoint goes


def test_after_a_round_only_what_is_new_is_sent(tiny: Tiny, tmp_path: Path) -> None:
    sent = fetched(tiny(), tmp_path)
    rounds = [next(change for change in changes if change.name == ROUNDS) for changes in sent[:-1]]
    assert rounds[0].offset is None
    assert all(change.content and change.content.count(b"\n") == 1 for change in rounds)
    for before, after in pairwise(rounds):
        assert before.content is not None
        assert after.offset == (before.offset or 0) + len(before.content)
    assert [change.name for change in sent[3]] == ["clients.arrow", "ledger.csv.gz", "rounds.jsonl", NAME]


def test_what_goes_on_sends_its_growing_files_whole_at_first(tiny: Tiny, tmp_path: Path) -> None:
    rounds = cell_rounds(prepare(tiny()), tmp_path / "here")
    next(rounds), next(rounds)
    rounds.close()
    (here,) = (tmp_path / "here").iterdir()
    with (here / ROUNDS).open("a") as file:
        file.write(
            '{"of a round": "whose checkpoint never came", "which is longer than": "what comes instead"}\n' * 9
        )
    first, second, *_ = fetched(tiny(), tmp_path / "there", contents(here))
    assert [change.offset is None for change in first if change.name == ROUNDS] == [True]
    assert [change.offset is None for change in second if change.name == ROUNDS] == [False]
    for changes in (first, second):
        apply(changes, here)
    assert [line["round"] for line in RunDirectory(here).rounds()] == [0, 1, 2, 3]


def test_an_old_summary_goes_before_anything_comes(tmp_path: Path) -> None:
    for name in (SUMMARY, ROUNDS, "encoder.safetensors"):
        (tmp_path / name).write_text("old")
    outgoing = Outgoing(tmp_path)
    for name in (SUMMARY, "encoder.safetensors"):
        (tmp_path / name).unlink()
    (tmp_path / "manifest.json").write_text("{}")
    names = [(change.name, change.content is None) for change in outgoing.changes()]
    assert names[0] == (SUMMARY, True)
    assert names[-1] == ("encoder.safetensors", True)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", "way/x"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "way").symlink_to(tmp_path)
    for change in (Change(name, b"new"), Change(name, None), Change(name, b"new", 0)):
        with pytest.raises(UserError, match="leads out of"):
            apply([change], folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_link_is_replaced_and_never_written_through(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("dear")
    for name in ("a", "b"):
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).symlink_to(tmp_path / "other")
    apply([Change("a", b"new")], tmp_path / "run")
    with pytest.raises(OSError, match="symbolic links"):
        apply([Change("b", b"new", 0)], tmp_path / "run")
    assert (tmp_path / "other").read_text() == "dear"
    assert not (tmp_path / "run" / "a").is_symlink()


def test_a_file_that_lacks_something_is_not_added_to(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abcd")
    write_at(path, 2, b"xyz")
    assert path.read_bytes() == b"abxyz"
    with pytest.raises(OSError, match="it has 5 bytes"):
        write_at(path, 6, b"")
    assert path.read_bytes() == b"abxyz"


def test_a_scratch_folder_goes_and_with_it_those_of_the_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(name: str, age: float) -> Path:
        folder = tmp_path / f"{PREFIX}{name}"
        folder.mkdir()
        os.utime(folder, (time.time() - age,) * 2)
        return folder

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, young = made("dead", 1000), made("young", 1)
    with scratch() as mine, scratch() as other:
        assert mine != other
        assert not dead.exists()
        assert young.exists()
        os.utime(mine, (0, 0))  # old, and alive
        with scratch():
            assert mine.exists()
    assert [path.name for path in tmp_path.iterdir()] == [young.name]
