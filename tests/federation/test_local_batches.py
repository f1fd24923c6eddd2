"""Which samples a client's local steps see."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from fedbench.training.local import local_batches, num_steps


def batches(count: int, batch_size: int, epochs: int, seed: int = 0) -> torch.Tensor:
    return local_batches(100 + torch.arange(count), batch_size, epochs, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("count", "batch_size", "epochs", "steps"),
    [(479, 64, 2, 15), (431, 64, 2, 14), (128, 64, 2, 4), (5, 64, 3, 3)],
)
def test_the_steps_follow_from_the_images_without_loss(
    count: int, batch_size: int, epochs: int, steps: int
) -> None:
    assert num_steps(count, batch_size, epochs) == steps
    assert batches(count, batch_size, epochs).shape == (steps, min(count, batch_size))


@given(count=some.integers(2, 70), batch_size=some.integers(2, 40), epochs=some.integers(1, 4))
def test_every_image_is_seen_once_an_epoch_and_at_most_once_more(count: int, batch_size: int, epochs: int) -> None:
    drawn = batches(count, batch_size, epochs)
    assert len(drawn) == math.ceil(epochs * count / min(batch_size, count))
    assert len(set(drawn.flatten()[: epochs * count].tolist())) == count
    seen = torch.bincount(drawn.flatten() - 100, minlength=count)
    assert set(seen.tolist()) <= {epochs, epochs + 1}


@given(count=some.integers(2, 70), batch_size=some.integers(2, 40), epochs=some.integers(1, 4))
def test_no_batch_holds_an_image_twice(count: int, batch_size: int, epochs: int) -> None:
    for batch in batches(count, batch_size, epochs):
        assert len(set(batch.tolist())) == len(batch)


def test_each_shuffle_and_each_stream_is_another_order() -> None:
    drawn = batches(64, 16, 2)
    assert not torch.equal(drawn[:4], drawn[4:])
    assert not torch.equal(drawn, batches(64, 16, 2, seed=1))
    assert not torch.equal(drawn[:4].flatten(), 100 + torch.arange(64))
