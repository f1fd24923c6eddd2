"""`check` on an SSL method: the built-in ones are fine, and the three commonest mistakes are told."""

from pathlib import Path

import pytest
import torch
from tiny_config import TINY

from fedbench.cli import main
from fedbench.config import load_config
from fedbench.conformance.report import check_alone, check_plugin
from fedbench.plugins import builtin_files
from fedbench.training.model import build_model

ROOT = Path(__file__).parents[2]
SIMSIAM = (ROOT / "methods" / "ssl" / "simsiam.py").read_text()
BOTH = "z1, z2 = self.project(views[0]), self.project(views[1])"
SIMCLR = (ROOT / "methods" / "ssl" / "simclr.py").read_text()


def told(folder: Path, source: str, *changes: tuple[str, str]) -> dict[str, str]:
    """What is found of a method with these lines changed, by check."""
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    path = folder / "mine.py"
    path.write_text(source)
    rows = check_alone(str(path), {})
    return {name: finding.seen for _, name, finding in rows if finding is not None}


@pytest.mark.parametrize("name", builtin_files("ssl"))
def test_nothing_is_found_of_a_built_in_method(name: str) -> None:
    assert [row for row in check_alone(name, {}) if row[2] is not None] == []


def test_a_missing_stop_gradient_is_told(tmp_path: Path) -> None:
    found = told(tmp_path, SIMSIAM, ("z2.detach()", "z2"), ("z1.detach()", "z1"))
    assert found == {
        "images are kept apart": "a loss of -1 where all images are one point, -1 where they are apart, and the "
        "gradient flows through both views"
    }


def test_a_missing_stop_gradient_is_told_without_a_prediction_head_and_with_views_in_one_batch(
    tmp_path: Path,
) -> None:
    found = told(
        tmp_path,
        SIMCLR,
        (BOTH, "z1, z2 = self.project(torch.cat(views)).chunk(2)"),
        ("nt_xent(z1, z2, self.temperature)", "(z1 - z2).square().sum(1).mean()"),
    )
    assert list(found) == ["images are kept apart"]


@pytest.mark.parametrize("side", ["z1", "z2"])
def test_half_a_stop_gradient_is_one(tmp_path: Path, side: str) -> None:
    assert told(tmp_path, SIMSIAM, (f"{side}.detach()", side)) == {}


def test_a_head_that_is_not_registered_is_told(tmp_path: Path) -> None:
    found = told(
        tmp_path,
        SIMSIAM,
        ("self.prediction_head = SimSiam", "self.heads = [SimSiam"),
        ("4), out)", "4), out)]"),
        ("self.prediction_head(", "self.heads[0]("),
    )
    assert found["parameters are registered"].endswith("of shapes (2, 8), (2,), (8, 2) and 1 more")


def test_a_head_that_every_step_makes_anew_is_told(tmp_path: Path) -> None:
    found = told(tmp_path, SIMCLR, ("self.project(views[1])", "torch.nn.Linear(8, 8)(self.project(views[1]))"))
    assert "not the model's, of shapes (8, 8), (8,)" in found["parameters are registered"]


def test_a_loss_of_one_view_is_told(tmp_path: Path) -> None:
    found = told(tmp_path, SIMCLR, ("self.project(views[1])", "self.project(views[0] + 1)"))
    assert found == {"every view reaches the loss": "the loss is the same whatever view 2 shows"}


def test_a_small_view_that_is_asked_for_and_not_used_is_told(tmp_path: Path) -> None:
    head = "class SimCLR(SSLMethod):"
    found = told(tmp_path, SIMCLR, (head, f"{head}\n    takes_crops = True"))
    assert found == {"every view reaches the loss": "the loss is the same whatever view 3 shows"}


def test_a_federation_is_not_tried_with_what_is_wrong_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(SIMCLR.replace("self.project(views[1])", "undefined"))
    rows = check_plugin(str(path), {})
    assert {situation for situation, _, _ in rows} == {"alone"}
    assert "NameError: name 'undefined' is not defined" in str(rows[0][2])


def test_simsiam_of_the_documentation_is_ours_in_at_most_thirty_lines(tmp_path: Path) -> None:
    section = (ROOT / "docs" / "plugins.md").read_text().partition("## An SSL method")[2]
    source = section.partition("```python\n")[2].partition("```")[0]
    assert len(source.splitlines()) <= 30
    assert told(tmp_path, source) == {}
    losses = []
    for name in (str(tmp_path / "mine.py"), "simsiam"):
        model = build_model(load_config(TINY, {"ssl": {**TINY["ssl"], "name": name}}), 3)
        losses.append(model.training_step((torch.ones(4, 1, 8, 8), torch.eye(8).expand(4, 1, 8, 8)))["loss"])
    assert torch.equal(*losses)


def test_check_says_what_is_wrong_and_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    path.write_text(SIMSIAM.replace(".detach()", ""))
    assert main(["check", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "expected: something keeps images apart: a stop-gradient (z.detach() on the predicted side)" in printed
    assert "where:    alone: training_step" in printed


def test_the_template_is_fine_and_its_key_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    assert main(["new", "ssl", str(path)]) == 0
    assert told(tmp_path, path.read_text()) == {}
    assert main(["list", "ssl", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "ssl.hidden_dim = 512" in printed
    assert "ssl.off_diagonal = 1.0  (number >= 0)\n    Weight of what keeps the dimensions apart." in printed
