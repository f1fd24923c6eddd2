"""Every sample at one client, enough at each, and the mixture that was asked for."""

import pytest
import torch

from fedbench.config.schema import PartitionConfig
from fedbench.data import partition
from fedbench.errors import UserError

LABELS = torch.randint(0, 5, (203,), generator=torch.Generator().manual_seed(0))


def split(
    name: str, num_clients: int, seed: int = 0, labels: torch.Tensor = LABELS, **fields: float
) -> list[torch.Tensor]:
    config = PartitionConfig.model_validate({"name": name, **fields})
    return partition(labels, num_clients, config, torch.Generator().manual_seed(seed))


CASES = [("iid", 7, {}), ("dirichlet", 7, {"beta": 0.5}), ("dirichlet", 20, {"beta": 0.01, "min_size": 10})]


@pytest.mark.parametrize(("name", "num_clients", "fields"), CASES)
def test_every_sample_is_at_exactly_one_client_and_each_has_enough(name, num_clients, fields):
    for seed in range(5):
        clients = split(name, num_clients, seed, **fields)
        assert len(clients) == num_clients
        assert torch.cat(clients).sort().values.tolist() == list(range(203))
        assert min(len(indices) for indices in clients) >= fields.get("min_size", 2)
        assert all(indices.dtype == torch.int64 and indices.diff().gt(0).all() for indices in clients)


@pytest.mark.parametrize(("name", "num_clients", "fields"), CASES)
def test_the_same_seed_gives_the_same_clients_and_another_seed_does_not(name, num_clients, fields):
    first, again, other = (split(name, num_clients, seed, **fields) for seed in (3, 3, 4))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_iid_sizes_differ_by_at_most_one_and_ignore_order_and_label():
    clients = split("iid", 7)
    assert sorted(len(indices) for indices in clients) == [29] * 7
    assert sorted(len(indices) for indices in split("iid", 8)) == [25] * 5 + [26] * 3
    blocks = split("iid", 2, labels=torch.arange(2000) // 1000)
    assert 430 < (blocks[0] < 1000).sum() < 570  # 1000 drawn of 2000, half of them of class 0: 500 +- 16


@pytest.mark.parametrize(("beta", "num_clients"), [(0.3, 2), (2.0, 5)])
def test_a_class_is_shared_with_the_mean_and_variance_of_the_dirichlet(beta, num_clients):
    labels = torch.arange(40).repeat_interleave(500)  # 40 classes: 40 draws at each seed
    shares = []
    for seed in range(20):
        first = split("dirichlet", num_clients, seed, labels, beta=beta)[0]
        shares.append(labels[first].bincount(minlength=40) / 500)
    share = torch.cat(shares)
    mean = 1 / num_clients  # Beta(beta, (M - 1) beta): variance m (1 - m) / (M beta + 1)
    assert share.mean() == pytest.approx(mean, abs=0.05)
    assert share.var() == pytest.approx(mean * (1 - mean) / (num_clients * beta + 1), rel=0.15)


def test_different_classes_are_shared_differently():
    labels = torch.arange(2).repeat_interleave(500)
    clients = split("dirichlet", 2, 1, labels, beta=0.5)
    counts = labels[clients[0]].bincount(minlength=2)
    assert (counts[0] - counts[1]).abs() > 25


def test_a_tiny_beta_that_never_fills_all_clients_is_repaired_without_levelling_them():
    clients = split("dirichlet", 20, beta=0.01, min_size=3)
    sizes = sorted(len(indices) for indices in clients)
    assert sizes[:12] == [3] * 12  # 5 classes, nearly each at one client
    assert sizes[-1] > 20


def test_members_of_a_class_are_drawn_and_not_taken_in_order():
    labels = torch.zeros(400, dtype=torch.int64)
    largest = max(split("dirichlet", 3, 0, labels, beta=5.0), key=len)
    assert largest.diff().max() > 1
    assert largest[-1] - largest[0] > 300


@pytest.mark.parametrize("name", ["iid", "dirichlet"])
def test_more_clients_than_samples_allow_is_refused_and_the_limit_works(name):
    with pytest.raises(UserError, match=r"federation\.num_clients=51 .*allowed with 203 samples: 1 to 50"):
        split(name, 51, min_size=4)
    assert len(split(name, 50, min_size=4)) == 50
