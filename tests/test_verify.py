"""A finished run vouches for its files, and any of its rounds can be trained again."""

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from tiny_config import TINY

from fedbench.api import federate
from fedbench.cli import main
from fedbench.config import Config, load_config
from fedbench.errors import UserError
from fedbench.federation.experiment import prepare
from fedbench.pretrained import load_encoder
from fedbench.running.cell import cell_name, run_cell
from fedbench.running.verify import verify
from fedbench.tracking.client_rows import batch, head
from fedbench.tracking.run_directory import FILES, SEAL, RunDirectory, is_whole, sealed
from fedbench.tracking.runs import gather

Tiny = Callable[..., Config]
CALIBRATED = {"strategy": {"name": "lw_fedssl", "calibration": True}}


def trained(config: Config, out: Path) -> Path:
    run_cell(prepare(config), out)
    return out / cell_name(prepare(config))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint of every second round."""
    config = load_config(TINY, CALIBRATED, {"tracking": {"checkpoints": 2}})
    return trained(config, tmp_path_factory.mktemp("kept"))


@pytest.fixture
def run(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / kept.name))


def flip(path: Path, place: int = -9) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def unseal(directory: RunDirectory, change: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Make it a run of the first format, whose files nothing vouched for."""
    for name, content in (("summary", directory.summary()), ("manifest", directory.manifest())):
        kept = {key: value for key, value in content.items() if key not in (SEAL, FILES, "format")}
        kept |= change if name == "summary" else {}
        (directory.path / f"{name}.json").write_text(json.dumps(kept))


def test_a_whole_run_is_told_to_be_whole(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run)]) == 0
    assert "6 as written" in capsys.readouterr().out
    assert sorted(RunDirectory(run).summary()[FILES]) == [
        "clients.arrow",
        "encoder.safetensors",
        "ledger.csv.gz",
        "manifest.json",
        "rounds.jsonl",
    ]


@pytest.mark.parametrize(
    "name", ["clients.arrow", "encoder.safetensors", "ledger.csv.gz", "manifest.json", "rounds.jsonl"]
)
def test_one_bit_in_any_file_is_found(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    flip(run / name)
    assert main(["verify", str(run.parent)]) == 1
    assert f"{name} is not what was written" in capsys.readouterr().out
    (run / name).unlink()
    assert name == "manifest.json" or f"{name} is missing" in verify([run], None, {})[0]


def test_one_digit_in_the_summary_is_found(run: Path) -> None:
    path = run / "summary.json"
    path.write_text(path.read_text().replace('"rounds": 6', '"rounds": 7'))
    text, right = verify([run], None, {})
    assert "summary.json is not what was written" in text
    assert not right
    assert "summary.json is not what was written" in gather([run])[1][run]


def test_an_encoder_with_a_flipped_bit_is_not_loaded(run: Path) -> None:
    load_encoder(run)
    flip(run / "encoder.safetensors")
    with pytest.raises(UserError, match=r"encoder\.safetensors is not what was written"):
        load_encoder(run)


def test_a_seal_is_of_values_not_of_their_spelling() -> None:
    content = sealed({"b": [1, 2.5, None], "a": {"x": float("nan")}})
    again = json.loads(json.dumps({"a": {"x": None}, SEAL: content[SEAL], "b": [1, 2.5, None]}, indent=3))
    assert is_whole(again)
    assert not is_whole(again | {"b": [1, 2.5, 0]})
    assert not is_whole(again | {"more": 1})
    assert is_whole({"of": "an earlier version"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("client/flops", -1.0),
        ("client/flops", float("nan")),
        ("client/peak_memory_bytes", float("inf")),
        ("client/upload_bytes", True),
        ("client/download_bytes", "many"),
        ("seconds", -0.1),
        ("total/flops", -1),
        ("server/flops", "x"),
        ("probe/linear_top1", 5.0),
        ("probe/linear_top1", -1),
        ("untrained/linear_top1", float("-inf")),
        ("probe/linear_macro_f1", True),
        ("clients/num_lost", -4),
        ("all_clients/upload_bytes", -4),
        ("seed", 99),
    ],
)
def test_a_value_that_no_run_can_have_leaves_its_folder_out_by_name(
    run: Path, tiny: Tiny, key: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a file without a seal, as somebody may send it; the others are still ranked."""
    other = run.parent / "other"
    shutil.copytree(run, other)
    unseal(RunDirectory(run), {key: value})
    runs, left_out = gather([run.parent])
    assert [one.path for one in runs] == [other]
    assert list(left_out) == [run]
    assert main(["report", str(run.parent), "--out", str(run.parent / "report")]) == 0
    assert run.name[-8:] in (run.parent / "report" / "report.md").read_text()  # the name is broken into lines


@pytest.mark.costs
@pytest.mark.parametrize(("number", "begun"), [(0, "first round"), (2, "after round 1"), (5, "after round 3")])
def test_a_round_that_is_trained_again_has_the_same_bits(
    run: Path, number: int, begun: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(list(run.glob("checkpoint-*"))) == 3
    assert main(["verify", str(run), "--rerun", str(number)]) == 0
    printed = capsys.readouterr().out
    assert "equal, trained from the" in printed
    assert begun in printed


@pytest.mark.costs
def test_a_figure_that_was_made_up_is_found_by_training_again(run: Path) -> None:
    """Even where whoever made it up has sealed it anew."""
    directory = RunDirectory(run)
    lines = directory.rounds()
    lines[3]["train/loss"] *= 0.99
    (run / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    unseal(directory)
    text, right = verify([run], 3, {})
    assert not right
    assert "NOT EQUAL: train/loss" in text
    assert verify([run], 4, {})[1]


@pytest.mark.costs
def test_a_clients_figure_that_was_made_up_is_found_too(run: Path) -> None:
    directory = RunDirectory(run)
    rows = directory.clients().to_pydict()
    rows["loss"][10] *= 0.99  # of the fourth round
    per_round = [{name: values[at : at + 3] for name, values in rows.items()} for at in range(0, 18, 3)]
    (run / "clients.arrow").write_bytes(head() + b"".join(map(batch, per_round)))
    unseal(directory)
    text, right = verify([run], 3, {})
    assert not right
    assert "NOT EQUAL: clients/loss;" in text
    assert verify([run], 4, {})[1]


@pytest.mark.costs
def test_a_round_of_before_there_were_rows_of_clients_is_compared_by_its_line(run: Path) -> None:
    unseal(RunDirectory(run))
    (run / "clients.arrow").unlink()
    assert verify([run], 2, {})[1]


def test_what_clients_kept_is_gone_so_their_rounds_are_trained_from_the_first(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny({"strategy": {"name": "fedssl", "moon": True}}, tracking={"checkpoints": 1})
    text, right = verify([trained(config, tmp_path)], 3, {})
    assert right
    assert "trained from the first round" in text


def test_a_round_or_a_cell_that_is_not_there_is_refused(run: Path) -> None:
    assert "--rerun 6: " in verify([run], 6, {})[0]
    assert "it has 6" in verify([run], 6, {})[0]
    with pytest.raises(UserError, match="seed would make it another cell"):
        verify([run], 1, {"seed": 3})
    manifest = run / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"local_epochs": 1', '"local_epochs": 2'))
    unseal(RunDirectory(run))
    text, right = verify([run], 1, {})
    assert "could not be trained again" in text
    assert "with these data and plugins it is" in text
    assert not right


def test_a_summary_that_vouches_for_nothing_is_no_earlier_versions(run: Path) -> None:
    directory = RunDirectory(run)
    for lost in ([SEAL], [FILES], [SEAL, FILES]):
        kept = {key: value for key, value in directory.summary().items() if key not in lost}
        (run / "summary.json").write_text(json.dumps(kept))
        assert "does not vouch" in verify([run], None, {})[0]
        assert "does not vouch" in gather([run])[1][run]


def test_a_run_that_lost_its_manifest_its_summary_or_all_that_vouches_is_named(run: Path) -> None:
    (run / "manifest.json").rename(run / "moved")
    text, right = verify([run.parent], None, {})
    assert "manifest.json is missing" in text
    assert not right
    (run / "moved").rename(run / "manifest.json")
    (run / "summary.json").unlink()
    text, right = verify([run], None, {})
    assert "neither a summary nor a checkpoint vouches" in text
    assert not right


def test_an_unfinished_run_is_held_against_its_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    with closing(federate(tiny(), out=tmp_path)) as rounds:
        for _ in range(3):
            next(rounds)
    (run,) = tmp_path.iterdir()
    assert "as its checkpoint vouches" in verify([run], None, {})[0]
    lines = run / "rounds.jsonl"
    lines.write_text(lines.read_text().replace('"round": 1', '"round": 7'))
    text, right = verify([run], None, {})
    assert "not finished; rounds.jsonl is not what was written" in text
    assert not right


def test_a_finished_run_that_was_changed_is_not_finished_already(tiny: Tiny, run: Path) -> None:
    config = load_config(TINY, CALIBRATED, {"tracking": {"checkpoints": 2}})
    flip(run / "encoder.safetensors")
    with pytest.raises(UserError, match=r"encoder.safetensors is not what was written; remove it to run it again"):
        run_cell(prepare(config), run.parent)


def test_a_file_that_changes_during_a_run_is_not_vouched_for(tiny: Tiny, tmp_path: Path) -> None:
    rounds = federate(tiny(), out=tmp_path)
    next(rounds)
    (lines,) = tmp_path.glob("*/rounds.jsonl")
    lines.write_text(lines.read_text().replace('"stage": 1', '"stage": 2'))
    with pytest.raises(UserError, match=r"rounds.jsonl changed while the run went on"):
        list(rounds)
    assert not (lines.parent / "summary.json").exists()


def test_words_in_a_run_that_a_terminal_obeys_are_shown(run: Path) -> None:
    summary = RunDirectory(run).summary()
    files = {**summary[FILES], "\x1b[31mred": "0"}
    content = {key: value for key, value in summary.items() if key != SEAL} | {FILES: files}
    (run / "summary.json").write_text(json.dumps(sealed(content)))
    assert "\x1b" not in verify([run], None, {})[0]


def test_json_that_is_nested_too_deep_is_a_damaged_file(run: Path) -> None:
    (run / "summary.json").write_text("[" * 100_000)
    assert "summary.json cannot be read" in verify([run], None, {})[0]
