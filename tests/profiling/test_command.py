"""`python -m fedbench profile` and `published` as a user sees them."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedbench.cli import main
from fedbench.config import load_config
from fedbench.profiling.published import folder, table_names
from fedbench.remembered import remembered

TINY = [
    "digits",
    "encoder.width=16",
    "encoder.depth=3",
    "encoder.patch_size=4",
    "ssl.hidden_dim=16",
    "ssl.output_dim=8",
    "federation.rounds=6",
]


def test_json_has_the_documented_shape(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", *TINY, "strategy=lw_fedssl", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["convention"] == "step"
    assert [stage["stage"] for stage in tree["stages"]] == [1, 2, 3]
    for stage in tree["stages"]:
        assert stage["rounds"] == 2
        assert sum(stage["download"].values()) == pytest.approx(stage["download_bytes"])
        assert sum(stage["upload"].values()) == pytest.approx(stage["upload_bytes"])
        assert sum(stage["memory"].values()) == stage["peak_memory_bytes"]
    total = tree["total"]
    assert total["flops"] == sum(stage["flops"] for stage in tree["stages"])
    assert total["peak_memory_bytes"] == max(stage["peak_memory_bytes"] for stage in tree["stages"])
    assert total["paper_gflops"] > 0
    assert total["paper_comm_gb"] > 0
    assert [other["strategy"] for other in tree["compare"]] == ["fedssl"]
    assert tree["ratio_to_fedssl"]["flops"] == total["flops"] / tree["compare"][0]["total"]["flops"] < 1


def test_another_convention_changes_the_figures_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    main(["profile", *TINY, "--json", "--convention", "paper-v4"])
    tree = json.loads(capsys.readouterr().out)
    assert tree["convention"] == "paper-v4"
    assert tree["total"]["flops"] == tree["total"]["paper_gflops"] * 1e9
    assert "online branch" in tree["counts"]["flops"]


def test_csv_has_a_line_for_each_strategy_and_stage(capsys: pytest.CaptureFixture[str]) -> None:
    main(["profile", *TINY, "--csv", "--compare", "lw_fedssl@v4,prog_fedssl"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["strategy"], row["stage"]) for row in rows] == [
        ("fedssl", "1"),
        ("fedssl", "total"),
        *(("lw_fedssl@v4", str(stage)) for stage in (1, 2, 3)),
        ("lw_fedssl@v4", "total"),
        *(("prog_fedssl", str(stage)) for stage in (1, 2, 3)),
        ("prog_fedssl", "total"),
    ]
    assert all(int(row["memory.activations"]) > 0 for row in rows if row["stage"] != "total")


def test_text_names_convention_assumption_and_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    main(["profile", *TINY, "strategy=lw_fedssl@v3"])
    text = capsys.readouterr().out
    for words in (
        "convention `step`",
        "Samples per client: the data's own sizes",
        "hand-over",
        "activations",
        "x)",
    ):
        assert words in text
    main(["profile", *TINY, "data={name: image_folder, path: nowhere}"])
    assert "ASSUMED one batch (64) per client" in capsys.readouterr().out
    main(["profile", *TINY, "data={name: image_folder, path: nowhere}", "--samples", "640"])
    assert "640 per client, as asked for" in capsys.readouterr().out


def test_budgets_say_what_breaks_them_and_take_overrides_behind_them(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["profile", "--compare", "lw_fedssl", "--budget", "memory=1MiB", "upload=1TB", "flops=1e9", *TINY]
    assert main(words) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    verdicts = {(row[1].strip(), row[2].strip()): row[5].strip() for row in rows}
    assert len(verdicts) == 6
    assert verdicts["fedssl", "upload"] == verdicts["lw_fedssl@v4", "upload"] == "fits"
    assert verdicts["fedssl", "memory"].startswith("NO, stage 1: activations (")
    assert verdicts["lw_fedssl@v4", "flops"].startswith("NO, stage ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "memory=2XB"], "'2XB' is no amount; allowed: bytes as 500MB"),
        (["--budget", "flops=2GiB"], "allowed: a number with k, M, G, T, P, E"),
        (["--budget", "uplod=2GB"], "unknown resource 'uplod'; did you mean 'upload'?"),
        (["digits", "--budget", "memory"], "'' is no amount"),
        (["digits", "--budget", "seed=1"], "one RESOURCE=AMOUNT or more"),
        (["digits", "--json", "--budget", "memory=1GiB"], "as text, in the convention step"),
        (["digits", "--budget", "flops=1e999"], "is not finite"),
        (["digits", "--samples", "1"], "a client would have 1 samples"),
        (["digits", "--compare", "fedsll"], "did you mean 'fedssl'?"),
        (["strategy=fedsl"], "did you mean 'fedssl'?"),
        (["nowhere"], "neither a file nor one of"),
    ],
)
def test_bad_input_is_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.exhaustive
def test_published_tables_are_marked_and_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["published"]) == 0
    text = capsys.readouterr().out
    rows = [line for line in text.splitlines() if "moco_v3" in line and "lw_fedssl@v4" in line]
    assert "139.43" in rows[0]
    assert "1.6546" in rows[1]
    assert rows[1].rstrip(" |").endswith("no")
    for name in table_names():
        assert (folder() / f"{name}.yaml").read_text(encoding="utf-8").startswith("# PUBLISHED BY OTHERS")
    assert main(["published", "table9"]) == 2
    assert "no such table" in capsys.readouterr().err


def test_a_reference_that_the_configuration_does_not_fit_is_left_out_and_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["profile", *TINY, "strategy=lw_fedssl", "federation.rounds_per_stage=[1, 2, 3]"]) == 0
    printed = capsys.readouterr()
    assert "not compared with fedssl" in printed.err
    assert "lw_fedssl" in printed.out


def test_what_is_compared_has_its_own_fields_and_stands_there_once(capsys: pytest.CaptureFixture[str]) -> None:
    main(
        ["profile", *TINY, "strategy={name: fedssl, proximal: {mu: 0.1}}", "--compare", "fedssl,fedssl", "--json"]
    )
    tree = json.loads(capsys.readouterr().out)
    assert tree["strategy"] == "fedssl(proximal.mu=0.1)"
    assert [other["strategy"] for other in tree["compare"]] == ["fedssl"]
    assert tree["ratio_to_fedssl"]["flops"] == pytest.approx(1.0)


def test_a_second_call_is_answered_from_the_first_and_without_torch(tmp_path: Path) -> None:
    words = [sys.executable, "-X", "importtime", "-m", "fedbench", "profile", *TINY]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    first, second = (
        subprocess.run(words, capture_output=True, text=True, check=True, env=environment) for _ in range(2)
    )
    assert first.stdout == second.stdout
    imported = [re.findall(r"\|\s+torch$", one.stderr, re.MULTILINE) for one in (first, second)]
    assert imported[0]
    assert not imported[1]


def test_another_key_option_or_plugin_is_profiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plugin = tmp_path / "mine.py"
    plugin.write_text("one")
    calls = [
        remembered([load_config({"seed": 0})], ["text"], lambda: "1"),
        remembered([load_config({"seed": 1})], ["text"], lambda: "2"),
        remembered([load_config({"seed": 0})], ["json"], lambda: "3"),
        remembered([load_config({"strategy": str(plugin)})], ["text"], lambda: "4"),
    ]
    plugin.write_text("two")
    calls.append(remembered([load_config({"strategy": str(plugin)})], ["text"], lambda: "5"))
    calls.append(remembered([load_config({"seed": 0})], ["text"], lambda: "6"))
    assert calls == ["1", "2", "3", "4", "5", "1"]


def test_what_may_depend_on_the_users_files_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = load_config({"data": {"name": "npz", "path": "x.npz"}})
    assert [remembered([config], [], lambda text=text: text) for text in ("1", "2")] == ["1", "2"]
