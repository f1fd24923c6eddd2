"""The main job from the command line to the files, on the smallest configuration."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from exhaustive import all_but
from safetensors.torch import load, load_file
from tiny_config import TINY

from fedbench.cli import main
from fedbench.config import Config, load_config
from fedbench.encoders import build_encoder
from fedbench.evaluation import describe_features, untrained_encoder
from fedbench.federation.experiment import prepare
from fedbench.running.cell import cell_name, run_cell
from fedbench.tracking.run_directory import RunDirectory

Tiny = Callable[..., Config]


def write_grid(folder: Path, **extra: object) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({"base": TINY, **extra}))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three strategies, run once for the tests that read the results."""
    folder = tmp_path_factory.mktemp("grid")
    grid = write_grid(folder, axes={"strategy": ["fedssl", "prog_fedssl", "lw_fedssl"]})
    assert main(["run", "--grid", str(grid), "--out", str(folder / "out")]) == 0
    return folder / "out"


def summaries(out: Path) -> dict[str, dict[str, float]]:
    read = [json.loads(path.read_text()) for path in out.glob("*/summary.json")]
    return {str(summary["strategy"]): summary for summary in read}


def test_every_cell_leaves_a_run_directory(finished: Path) -> None:
    runs = [path for path in finished.iterdir() if path.is_dir()]
    assert len(runs) == 3
    for run in runs:
        files = {path.name for path in run.iterdir()} - {".lock"}
        grown = {"rounds.jsonl", "clients.arrow", "ledger.csv.gz"}
        assert files == {"manifest.json", *grown, "summary.json", "encoder.safetensors"}
        assert len((run / "rounds.jsonl").read_text().splitlines()) == 6


def test_the_leaderboard_is_written_in_three_forms_with_a_picture(finished: Path) -> None:
    text = (finished / "leaderboard.md").read_text()
    for name in ("fedssl", "prog_fedssl", "lw_fedssl"):
        assert name in text
    assert len((finished / "leaderboard.csv").read_text().splitlines()) == 4
    assert json.loads((finished / "leaderboard.json").read_text())
    assert (finished / "pareto.png").stat().st_size > 10_000


def test_lw_fedssl_costs_less_than_fedssl_and_prog_lies_between(finished: Path) -> None:
    costs = summaries(finished)
    for key in ("client/flops", "client/upload_bytes", "client/download_bytes"):
        assert costs["lw_fedssl@v4"][key] < costs["prog_fedssl"][key] < costs["fedssl"][key], key
    assert costs["lw_fedssl@v4"]["client/peak_memory_bytes"] < costs["fedssl"]["client/peak_memory_bytes"]
    assert costs["prog_fedssl"]["client/peak_memory_bytes"] <= costs["fedssl"]["client/peak_memory_bytes"]


def test_totals_are_the_sums_of_the_rounds(finished: Path) -> None:
    for run in (path for path in finished.iterdir() if path.is_dir()):
        rounds = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
        summary = json.loads((run / "summary.json").read_text())
        for key in ("all_clients/flops", "all_clients/upload_bytes", "all_clients/download_bytes"):
            assert summary[key] == sum(record[key] for record in rounds)
        assert summary["client/flops"] == summary["all_clients/flops"] / 3


@pytest.mark.costs
def test_a_clients_share_is_of_all_that_are_registered_drawn_or_not(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(federation={"rounds": 1, "participants": 2})
    run_cell(prepare(config), tmp_path)
    summary = json.loads((run_of(config, tmp_path) / "summary.json").read_text())
    for cost in ("flops", "download_bytes", "upload_bytes"):
        assert summary[f"client/{cost}"] == summary[f"all_clients/{cost}"] / 3 > 0


def test_the_byte_ledger_adds_up_to_the_rounds(finished: Path) -> None:
    for run in (RunDirectory(path) for path in finished.iterdir() if path.is_dir()):
        lines = run.ledger()
        for record in run.rounds():
            mine = [line for line in lines if int(line["round"]) == record["round"]]
            for direction in ("download", "upload"):
                entries = [line for line in mine if line["direction"] == direction]
                total = sum(int(line["value_bytes"]) + int(line["framing_bytes"]) for line in entries)
                assert total == record[f"all_clients/{direction}_bytes"] > 0


def test_all_strategies_are_measured_against_the_same_untrained_encoder(finished: Path) -> None:
    floors = {summary["untrained/linear_top1"] for summary in summaries(finished).values()}
    assert len(floors) == 1


def test_the_summary_says_how_the_features_lie_trained_and_untrained(finished: Path) -> None:
    for run in (path for path in finished.iterdir() if path.is_dir()):
        config = load_config(json.loads((run / "manifest.json").read_text())["config"])
        experiment, summary = prepare(config), json.loads((run / "summary.json").read_text())
        trained = build_encoder(config.encoder, config.encoder.depth)
        trained.load_state_dict(load_file(run / "encoder.safetensors"))
        for kind, encoder in (("features", trained), ("untrained_features", untrained_encoder(config))):
            lie = describe_features(encoder, experiment.dataset.test_images, experiment.views, config.seed)
            assert {key: summary[f"{kind}/{key}"] for key in lie} == pytest.approx(lie)


def test_the_saved_encoder_is_the_full_encoder(finished: Path) -> None:
    for run in (path for path in finished.iterdir() if path.is_dir()):
        config = load_config(json.loads((run / "manifest.json").read_text())["config"])
        encoder = build_encoder(config.encoder, config.encoder.depth)
        encoder.load_state_dict(load_file(run / "encoder.safetensors"))


def run_of(config: Config, out: Path) -> Path:
    return out / cell_name(prepare(config))


def encoder_of(config: Config, out: Path) -> bytes:
    run_cell(prepare(config), out)
    return (run_of(config, out) / "encoder.safetensors").read_bytes()


def test_a_finished_cell_is_not_run_again(tiny: Tiny, tmp_path: Path) -> None:
    run_cell(prepare(tiny()), tmp_path)
    written = (run_of(tiny(), tmp_path) / "summary.json").stat().st_mtime_ns
    assert run_cell(prepare(tiny()), tmp_path).words.startswith("was finished already")
    assert (run_of(tiny(), tmp_path) / "summary.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("strategy", all_but("lw_fedssl", ["fedssl", "lw_fedssl"]))
def test_the_same_seed_gives_the_same_file_and_another_seed_does_not(
    tiny: Tiny, tmp_path: Path, strategy: str
) -> None:
    configs = [tiny(strategy=strategy, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (encoder_of(config, tmp_path / str(number)) for number, config in enumerate(configs))
    assert first == again
    assert first != other


def test_the_state_of_the_global_generator_does_not_reach_the_result(tiny: Tiny, tmp_path: Path) -> None:
    encoders = []
    for number in range(2):
        torch.manual_seed(number)
        encoders.append(encoder_of(tiny(), tmp_path / str(number)))
    assert encoders[0] == encoders[1]


def test_bf16_trains_and_still_sends_float32(tiny: Tiny, tmp_path: Path) -> None:
    encoder = load(encoder_of(tiny(precision="bf16-mixed"), tmp_path))
    assert {value.dtype for value in encoder.values()} == {torch.float32}


def test_cells_that_differ_have_different_names(tiny: Tiny) -> None:
    names = [
        cell_name(prepare(tiny(strategy="lw_fedssl"))),
        cell_name(prepare(tiny(strategy={"name": "lw_fedssl", "blocks_per_stage": 2}))),
        cell_name(prepare(tiny(strategy="lw_fedssl", federation={"rounds": 7}))),
    ]
    assert len(set(names)) == 3
    assert names[1].startswith("lw_fedssl@v4_blocks_per_stage=2-moco_v3-digits-seed0-")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["strategy=lw_fedssl", "federation.rounds=2"], "federation.rounds=2 is fewer than the 4 stages"),
        (["federation.num_clients=900"], "federation.num_clients"),
        (["encoder.pach_size=2"], "did you mean 'patch_size'"),
        (["ssl=mococo"], "'mococo' is not known"),
        (["strategy=nobody"], "'nobody' is not known"),
        (["data.name=image_folder", "data.path=not/there"], "not/there"),
        (["nothing.yaml"], "'nothing.yaml' is neither a file nor one of"),
        (["--grid", "nothing"], "'nothing' is neither a file nor one of"),
        (["accelerator=cuda"], "torch sees no GPU"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    if "cuda" in words[0] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    out = tmp_path / "out"
    assert main(["run", *words, "--out", str(out)]) == 2
    assert expected in capsys.readouterr().err
    assert not out.exists()


def test_one_bad_cell_stops_a_grid_before_its_first_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write_grid(tmp_path, axes={"federation.num_clients": [3, 900]})
    assert main(["run", "--grid", str(grid), "--out", str(tmp_path / "out")]) == 2
    assert "federation.num_clients" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_overrides_may_stand_on_both_sides_of_options(tmp_path: Path) -> None:
    from fedbench.cli import parse, selected_cells

    grid = write_grid(tmp_path)
    words = ["run", "seed=4", "--grid", str(grid), "--out", str(tmp_path), "ssl=byol"]
    (config,), out = selected_cells(parse(words))
    assert (config.seed, config.ssl.name, out) == (4, "byol", tmp_path)
    (config, *_), out = selected_cells(parse(["run", "--grid", "seed=4"]))
    assert (config.seed, str(out)) == (4, "runs/quickstart")


@pytest.mark.parametrize(("words", "limit_s"), [(["run", "--help"], 0.25), (["list"], 0.5)])
def test_help_and_list_answer_at_once_and_import_no_torch(words: list[str], limit_s: float) -> None:
    code = "\n".join(
        [
            "import sys",
            "from fedbench.cli import main",
            f"try: main({words})",
            "finally: print('torch' in sys.modules)",
        ]
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert result.stdout.endswith("False\n")
    assert min(seconds) < limit_s  # of CPU: other tests run beside


def test_a_reader_that_hangs_up_gets_no_complaint() -> None:
    command = [sys.executable, "-m", "fedbench", "list"]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # as `| head` does
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("strategies", ["fedssl", "lw_fedssl", "prog_fedssl"]),
        ("ssl", ["byol", "moco_v3", "simclr"]),
        ("encoders", ["resnet18", "vit"]),
        ("datasets", ["cifar10", "cifar100", "digits", "image_folder", "npz", "pathmnist", "stl10"]),
        ("grids", ["quickstart"]),
    ],
)
def test_list_names_what_there_is(kind: str, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert set(expected) <= set(listed)
