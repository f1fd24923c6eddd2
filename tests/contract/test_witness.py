import torch

from fedbench.conformance.witness import Keepsakes


def test_equal_values_are_kept_once_and_no_later_step_changes_them() -> None:
    keepsakes, weight = Keepsakes(), torch.zeros(2)
    first, again = keepsakes.copy({"w": weight}), keepsakes.copy({"w": weight.clone()})
    weight.add_(1)
    changed = keepsakes.copy({"w": weight})
    assert first["w"] is again["w"]
    assert (first["w"].tolist(), changed["w"].tolist()) == ([0, 0], [1, 1])
