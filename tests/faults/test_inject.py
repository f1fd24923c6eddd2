"""A share of the faults that `make stress` injects."""

from pathlib import Path

import pytest
from exhaustive import stress
from inject import inject


@pytest.mark.exhaustive
@pytest.mark.parametrize("share", [17, stress(4)])
def test_a_run_survives_every_fault_and_ends_with_the_same_bits(tmp_path: Path, share: int) -> None:
    for line in inject(tmp_path, share):
        assert line.injected > 0
        assert (line.survived, line.equal) == (line.injected, line.injected), line
