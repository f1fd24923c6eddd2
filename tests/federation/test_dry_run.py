"""Mistakes of a plugin that only a model shows are told before any data is read."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedbench.config import Config
from fedbench.errors import UserError
from fedbench.federation.experiment import check

pytestmark = pytest.mark.dry_run

Tiny = Callable[..., Config]

METHOD = """
from lightly.loss import VICRegLoss
from lightly.models.modules import DINOProjectionHead
from torch import nn

from fedbench.ssl import SSLMethod


class Mine(SSLMethod):
    def __init__(self, encoder, config):
        super().__init__(encoder)
        self.projection_head = nn.Linear(encoder.feature_dim, config.output_dim)
        {init}

    def training_step(self, views, batch_idx=0):
        z1, z2 = (self.project(view) for view in views)
        loss = (z1 - z2).square().mean()
        {step}
        return {{"loss": loss, "projections": (z1, z2)}}
"""
METHODS = [  # two lines of a method, what the error says
    ("", "loss = VICRegLoss()(z1, z2)", "losses and hooks whose course and shapes do not depend on values"),
    ("", "loss = loss if loss.item() < 3 else loss / 2", "no .item()"),
    ("", "loss = loss.nonsense", "AttributeError: 'FakeTensor' object has no attribute 'nonsense'"),
    (
        "self.projection_head = DINOProjectionHead(16, 16, 8, 8); self.add_target(0.9)",
        "",
        "allowed: modules that it can copy",
    ),
    ("encoder.blocks[2].mlp = encoder.blocks[0].mlp", "", r"'encoder\.blocks\.0\.mlp\S+' and .* are one tensor"),
    ("self.projection_head = encoder.norm", "", r"'encoder\.norm\S+' and 'projection_head\S+' are one tensor"),
    ("self.target_encoder = encoder", "", r"'encoder\.stem\S+' and 'target_encoder\S+' are one tensor"),
    ("self.encoder = nn.Sequential(encoder)", "", "its encoder is not the configured one"),
]


@pytest.mark.parametrize(("init", "step", "words"), METHODS)
def test_an_ssl_method_that_could_not_be_run_to_the_end(
    tiny: Tiny, tmp_path: Path, init: str, step: str, words: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(METHOD.format(init=init or "pass", step=step))
    name = f"{file}:Mine" if "encoder = nn" in init else str(file)
    with pytest.raises(UserError, match=words) as raised:
        check(tiny(ssl={"name": name}, data=NO_DATA))
    assert str(raised.value).startswith(f"ssl={name}: ")
    if step:
        line = 1 + file.read_text().splitlines().index(f"        {step}")
        assert f"({file}, line {line})" in str(raised.value)


NO_DATA = {"name": "image_folder", "path": "/nowhere"}
PLUGIN = """
from dataclasses import dataclass

from fedbench.federation import {base}


@dataclass(frozen=True)
class Mine({base}):
    def {hook}:
        {body}
"""
HOOKS = [  # base, hook, body, what the error says
    ("Mechanism", "begin_visit(self, visit)", "visit.trained['encoder.norm.weight'].sum().item()", "no .item()"),
    ("Mechanism", "end_visit(self, visit)", "visit.keep('own', {'encoder.norm.weight': 3})", "AttributeError"),
    ("Mechanism", "end_visit(self, visit)", "visit.keep('own', {'no.such': 3})", "keep.* holds 'no.such'"),
    ("Mechanism", "local_loss(self, step)", "return step.received['no.such']", "KeyError: 'no.such'"),
    (
        "Mechanism",
        "local_loss(self, step)",
        "return step.received['encoder.blocks.2.norm1.weight'].nonsense if len(step.trained) > 9 and "
        "'encoder.blocks.2.norm1.weight' in step.trained else None",
        "AttributeError",
    ),
    (
        "Mechanism",
        "after_aggregate(self, values, server)",
        "return {key: value[None] for key, value in values.items()}",
        r"Mine.after_aggregate returned '.*' of shape \(1, 1, 4, 16\).*; the model has \(1, 4, 16\)",
    ),
    ("Mechanism", "receive(self, update, server)", "return update.nonsense", "AttributeError"),
    ("Mechanism", "ends_stage(self, server)", "return server.memory['nothing'] > 0", "KeyError: 'nothing'"),
    (
        "Mechanism",
        "end_stage(self, server)",
        "server.edit({'norm'}, lambda model, images: model.nonsense)",
        "Error",
    ),
    (
        "Mechanism",
        "end_stage(self, server)",
        "server.edit({'heads'}, lambda model, _: model.encoder.norm.bias.add_(1))",
        "edit changed 'norm'; allowed: the groups that it names, .*heads",
    ),
    ("Mechanism", "end_stage(self, server)", "server.train(1)", "the mechanism has no images; allowed: with"),
    ("Mechanism", "server_step(self, server)", "return server.nonsense", "reads the server's 'nonsense'; allowed"),
    ("LW", "aggregate(self, updates, server)", "return {}", "Mine.aggregate left updates unread"),
    ("LW", "aggregate(self, updates, server)", "return {'x': next(iter(updates)).state['y']}", "KeyError: 'y'"),
    (
        "LW",
        "start_stage(self, stage, initial, current)",
        "return {}",
        "Mine.start_stage leaves out 'encoder",
    ),
    (
        "LW",
        "start_stage(self, stage, initial, current)",
        "return initial | ({key: current[key].double() for key in initial} if stage == 3 else {})",
        "KeyError: 'encoder.blocks.2",
    ),
    (
        "LW",
        "start_stage(self, stage, initial, current)",
        "return initial | {key: value.double() for key, value in current.items()}",
        r"Mine.start_stage returned .*float64; the model has .*float32",
    ),
]


@pytest.mark.parametrize(("base", "hook", "body", "words"), HOOKS)
def test_a_hook_that_would_fail_in_a_run(
    tiny: Tiny, tmp_path: Path, base: str, hook: str, body: str, words: str
) -> None:
    file = tmp_path / "mine.py"
    text = PLUGIN.format(base=base, hook=hook, body=body)
    lw = "from fedbench.methods.federation.lw_fedssl import LWFedSSL as LW"
    file.write_text(text.replace("from fedbench.federation import LW", lw))
    strategy: dict[str, Any] = (
        {"name": "lw_fedssl", str(file): True} if base == "Mechanism" else {"name": str(file)}
    )
    with pytest.raises(UserError, match=words) as raised:
        check(tiny(strategy=strategy, data=NO_DATA))
    if "Error" in words:
        line = 1 + file.read_text().splitlines().index(f"        {body}")
        assert re.match(r"(mechanism Mine|strategy=\S+): ", str(raised.value))
        assert f"({file}, line {line})" in str(raised.value)


def test_the_first_two_stages_and_the_last_are_tried_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedbench.federation import dry_run

    seen = []
    trace = dry_run.trace_step

    def noted(*arguments: Any) -> Any:
        seen.append(arguments[6])
        return trace(*arguments)

    monkeypatch.setattr(dry_run, "trace_step", noted)
    config = tiny(strategy={"name": "lw_fedssl", "moon": {"mu": 0.31}}, encoder={"depth": 4})
    check(config)
    assert seen == [1, 1, 2, 2, 4, 4]  # a first visit, and one after it
    rate = config.optimizer.model_copy(update={"base_lr": 0.3})
    check(config.model_copy(update={"seed": 5, "optimizer": rate}))
    assert len(seen) == 6
    check(config.model_copy(update={"strategy": {"name": "lw_fedssl", "moon": {"mu": 0.0}}}))
    assert len(seen) == 12


def test_two_plugins_of_one_class_name_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    """What they keep, and the server's images for them, would be taken for each other's."""
    files = [tmp_path / name for name in ("one.py", "other.py")]
    for file in files:
        file.write_text(PLUGIN.format(base="Mechanism", hook="auxiliary(self)", body="return 0.2"))
    with pytest.raises(UserError, match="2 of its plugins are classes called Mine"):
        check(tiny(strategy={"name": "fedssl", **{str(file): True for file in files}}))
