"""The server's own training: by which learning rate."""

from collections.abc import Callable

import pytest

from fedbench.config import Config
from fedbench.conformance.witness import Witness
from fedbench.federation.experiment import prepare


@pytest.mark.parametrize(("base_lr", "expected"), [(None, 0.1), (0.4, 0.4)])
def test_calibrations_first_update_is_as_large_as_its_learning_rate(
    tiny: Callable[..., Config], base_lr: float | None, expected: float
) -> None:
    """AdamW's first step is lr * g / (|g| + epsilon); six images are one step; lr is base_lr * batch / 256."""
    strategy = {"name": "fedssl", "calibration": {"share": 0.1, "base_lr": base_lr}}
    optimizer = {"base_lr": 0.1, "weight_decay": 0.0}
    witness = Witness(prepare(tiny(strategy=strategy, optimizer=optimizer, federation={"rounds": 1})))
    assert witness.records[0].server_steps == 1
    before, after = witness.aggregated[0], witness.final[0]
    weights = [key for key in before if key.endswith("weight")]
    largest = max((after[key] - before[key]).abs().max().item() for key in weights)
    assert largest == pytest.approx(expected * 8 / 256, rel=1e-3)
