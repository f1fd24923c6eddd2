"""The encoder of a run, used without fedbench: loaded as a module, and as a model of timm or torchvision."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from exhaustive import exhaustive
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_config import TINY
from torch import Tensor, nn

import fedbench
from fedbench.cli import main
from fedbench.config import Config, load_config
from fedbench.errors import UserError
from fedbench.evaluation.linear import fit_linear
from fedbench.federation.experiment import prepare
from fedbench.pretrained import export
from fedbench.running.cell import cell_name, run_cell

Finished = Callable[[str], tuple[Config, Path]]
ENCODERS: dict[str, dict[str, Any]] = {
    "vit": {},  # that of the tiny configuration
    "resnet18": {"encoder": {"name": "resnet18", "image_size": 16, "depth": 4}},
    "resnet18-large": {"encoder": {"name": "resnet18", "image_size": 72, "depth": 4}},
}
SHORT = {"federation": {"rounds": 1, "num_clients": 2}, "data": {"num_train": 20}, "probe": {"epochs": 3}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run with that encoder, made once."""

    @cache
    def make(encoder: str) -> tuple[Config, Path]:
        config = load_config(TINY, SHORT, ENCODERS[encoder])
        experiment, out = prepare(config), tmp_path_factory.mktemp(encoder)
        run_cell(experiment, out)
        return config, out / cell_name(experiment)

    return make


@pytest.fixture(params=["vit", exhaustive("resnet18"), exhaustive("resnet18-large")])
def run(request: pytest.FixtureRequest, finished: Finished) -> tuple[Config, Path]:
    return finished(request.param)


@pytest.fixture
def vit_run(tmp_path: Path, finished: Finished) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(finished("vit")[1], tmp_path / "run"))


def classify(train: Tensor, test: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Predicted and true classes of the test images, by the run's linear probe on features."""
    dataset = prepare(config).dataset
    mean, std = train.mean(0), train.std(0).clamp_min(1e-6)
    classifier = fit_linear((train - mean) / std, dataset.train_labels, 10, config.probe, config.seed)
    return classifier((test - mean) / std).argmax(1), dataset.test_labels


@torch.no_grad()
def features(model: nn.Module, config: Config, *, normalised: bool) -> tuple[Tensor, Tensor]:
    """Of training and test images; `normalised`: the model takes them so, else uint8."""
    dataset = prepare(config).dataset
    images = [dataset.train_images, dataset.test_images]
    train, test = (model((x.float() / 255 - 0.5) / 0.25 if normalised else x) for x in images)
    return train, test


def built_by(usage: str) -> nn.Module:
    """The model that the printed lines leave behind."""
    names: dict[str, Any] = {}
    exec(usage, names)
    model: nn.Module = names["model"]
    return model


def test_the_loaded_module_classifies_as_the_run_did(run: tuple[Config, Path]) -> None:
    config, path = run
    encoder = fedbench.load_encoder(path)
    predicted, truth = classify(*features(encoder, config, normalised=False), config)
    top1 = json.loads((path / "summary.json").read_text())["probe/linear_top1"]
    assert not encoder.training
    assert (predicted == truth).float().mean().item() == pytest.approx(top1, abs=1e-7)


def test_the_printed_lines_build_a_twin_with_the_same_features_and_the_same_predictions(
    run: tuple[Config, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, path = run
    assert main(["export", str(path)]) == 0
    twin = built_by(capsys.readouterr().out)
    assert type(twin).__module__.split(".")[0] in ("timm", "torchvision")
    ours = features(fedbench.load_encoder(path), config, normalised=False)
    theirs = features(twin, config, normalised=True)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)  # they may pool in another order
    assert torch.equal(classify(*ours, config)[0], classify(*theirs, config)[0])


def test_the_header_names_the_constructors_arguments_and_the_input(vit_run: Path) -> None:
    from timm.models.vision_transformer import VisionTransformer

    assert main(["export", str(vit_run)]) == 0
    file = vit_run / "encoder.timm.safetensors"
    with safe_open(file, "pt") as content:
        header = content.metadata()
    model = VisionTransformer(**json.loads(header["arguments"]))
    model.load_state_dict(load_file(file), strict=True)
    assert (json.loads(header["input"]), header["mean"], header["std"]) == ([1, 8, 8], "0.5", "0.25")


@pytest.mark.exhaustive  # a run on large images
def test_timms_resnet_takes_the_exported_tensors_too(tmp_path: Path, finished: Finished) -> None:
    import timm

    config, path = finished("resnet18-large")
    assert main(["export", str(path), "--out", str(tmp_path / "new" / "r.safetensors")]) == 0
    model = timm.create_model("resnet18", num_classes=0, in_chans=1).eval()
    model.load_state_dict(load_file(tmp_path / "new" / "r.safetensors"), strict=True)
    ours = features(fedbench.load_encoder(path), config, normalised=False)
    torch.testing.assert_close(ours, features(model, config, normalised=True), rtol=1e-5, atol=1e-5)


def test_the_file_in_a_run_loads_the_same_encoder_and_no_random_number_is_drawn(
    vit_run: Path,
) -> None:
    images = torch.rand(2, 1, 8, 8)
    state = torch.get_rng_state()
    from_folder = fedbench.load_encoder(vit_run)
    from_file = fedbench.load_encoder(str(vit_run / "encoder.safetensors"))
    assert torch.equal(from_folder(images), from_file(images))
    assert torch.equal(torch.get_rng_state(), state)


def test_images_of_another_shape_are_refused_in_words(vit_run: Path) -> None:
    encoder = fedbench.load_encoder(vit_run)
    with pytest.raises(UserError, match=r"shape \(2, 3, 8, 8\); allowed: \(B, 1, 8, 8\)"):
        encoder(torch.rand(2, 3, 8, 8))


def test_what_is_no_finished_run_is_named(vit_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run; allowed: a run directory"):
        fedbench.load_encoder(tmp_path)
    with pytest.raises(UserError, match="nowhere' is no run"):
        fedbench.load_encoder(tmp_path / "nowhere")
    (vit_run / "summary.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        fedbench.load_encoder(vit_run)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("encoder.safetensors", b"rubbish", "encoder.safetensors is not what was written"),
        ("manifest.json", b"{", "manifest.json is not that of a run"),
        ("manifest.json", b'{"config": {"encoder": {"width": "wide"}}}', "manifest.json is not that of a run"),
        ("manifest.json", b'{"config": {"encoder": {"width": 32}}}', "does not fit .*manifest.json"),
    ],
)
def test_a_damaged_run_is_refused_in_words(vit_run: Path, file: str, content: bytes, words: str) -> None:
    (vit_run / file).write_bytes(content)
    with pytest.raises(UserError, match=words):
        fedbench.load_encoder(vit_run)


@pytest.mark.parametrize("name", ["encoder.safetensors", "weights.pt", "folder.safetensors"])
def test_an_export_overwrites_neither_the_runs_own_file_nor_a_folder(
    vit_run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (vit_run / "folder.safetensors").mkdir()
    before = (vit_run / "encoder.safetensors").read_bytes()
    assert main(["export", str(vit_run), "--out", str(vit_run / name)]) == 2
    assert "allowed: a .safetensors file that is not the run's own" in capsys.readouterr().err
    assert (vit_run / "encoder.safetensors").read_bytes() == before


def test_a_run_that_was_moved_still_loads(vit_run: Path, tmp_path: Path) -> None:
    shutil.move(vit_run, tmp_path / "elsewhere")
    assert fedbench.load_encoder(tmp_path / "elsewhere").feature_dim == 16


def test_code_that_a_run_names_is_not_executed_unasked(vit_run: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "evil.py"
    plugin.write_text(f"from pathlib import Path\nPath({str(tmp_path / 'done')!r}).touch()\n")
    manifest = json.loads((vit_run / "manifest.json").read_text())
    for change in ({"name": str(plugin)}, {"transforms": [{"name": str(plugin)}]}):
        changed = {**manifest, "config": {"encoder": {**manifest["config"]["encoder"], **change}}}
        (vit_run / "manifest.json").write_text(json.dumps(changed))
        for load in (fedbench.load_encoder, export):
            with pytest.raises(UserError, match="which would be executed; allowed"):
                load(vit_run)
    assert not (tmp_path / "done").exists()
    with pytest.raises(UserError, match="must define one subclass"):
        fedbench.load_encoder(vit_run, plugins=True)
    assert (tmp_path / "done").exists()
