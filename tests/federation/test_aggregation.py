import weakref
from collections.abc import Iterator

import pytest
import torch

from fedbench.errors import UserError
from fedbench.federation import ClientUpdate, weighted_mean
from fedbench.federation.aggregation import check_fit
from fedbench.federation.diagnostics import PAIRED_CLIENTS, PairwiseL2


def update(client: int, samples: int, *values: float) -> ClientUpdate:
    return ClientUpdate(client, samples, {"w": torch.tensor(values)})


def test_two_clients_of_one_and_three_samples_weigh_one_and_three() -> None:
    merged = weighted_mean(iter([update(0, 1, 4.0), update(1, 3, 8.0)]))
    assert merged["w"].tolist() == [7.0]


def test_the_mean_of_equal_values_is_that_value_bit_for_bit() -> None:
    value = torch.tensor([0.1, 1 / 3, 1e-30, -7e20])
    merged = weighted_mean(ClientUpdate(n, n + 3, {"w": value}) for n in range(5))
    assert torch.equal(merged["w"], value)


def test_integer_buffers_stay_integers() -> None:
    updates = [ClientUpdate(0, 1, {"n": torch.tensor(4)}), ClientUpdate(1, 2, {"n": torch.tensor(5)})]
    merged = weighted_mean(iter(updates))
    assert merged["n"].dtype == torch.int64
    assert merged["n"].item() == 5  # 14 / 3, rounded


def test_no_update_gives_nothing() -> None:
    assert weighted_mean(iter(())) == {}


def test_one_update_is_in_memory_at_a_time() -> None:
    seen: list[weakref.ref[torch.Tensor]] = []

    def updates() -> Iterator[ClientUpdate]:
        for client in range(4):
            assert sum(reference() is not None for reference in seen) <= 1
            state = {"w": torch.ones(3)}
            seen.append(weakref.ref(state["w"]))
            yield ClientUpdate(client, 1, state)

    weighted_mean(updates())
    assert len(seen) == 4


def test_the_distance_between_updates_is_the_mean_over_pairs() -> None:
    distances = PairwiseL2()
    assert distances.mean() is None
    for value in ([1.0, 2.0], [1.0, 4.0], [1.0, 8.0]):
        distances.add({"a": torch.tensor(value), "b": torch.tensor([5.0]), "n": torch.tensor(3)})
    assert distances.mean() == pytest.approx((2.0 + 6.0 + 4.0) / 3)


def test_only_the_first_updates_are_kept_for_their_distance() -> None:
    distances = PairwiseL2()
    for client in range(PAIRED_CLIENTS + 1):
        distances.add({"a": torch.full((2,), 100.0 if client == PAIRED_CLIENTS else 1.0)})
    assert distances.mean() == 0.0


def test_an_aggregate_with_a_tensor_that_the_model_lacks_is_refused() -> None:
    state = {"w": torch.zeros(1)}
    check_fit("Mine.aggregate", {"w": torch.ones(1)}, state)
    with pytest.raises(UserError, match=r"Mine.aggregate returned 'w' of shape \(2,\)"):
        check_fit("Mine.aggregate", {"w": torch.zeros(2)}, state)
    with pytest.raises(UserError, match=r"torch\.float64; the model has \(1,\), torch\.float32"):
        check_fit("Mine.aggregate", {"w": torch.zeros(1, dtype=torch.float64)}, state)
    with pytest.raises(UserError, match="the model has no such tensor"):
        check_fit("Mine.aggregate", {"v": torch.zeros(1)}, state)
