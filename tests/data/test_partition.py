"""Every sample at one client, enough at each, and the mixture that was asked for."""

from pathlib import Path

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


@pytest.mark.parametrize("name", ["iid", "dirichlet", "quantity"])
def test_more_clients_than_samples_allow_is_refused_and_the_limit_works(name):
    with pytest.raises(UserError, match=r"federation\.num_clients=51 .*allowed with 203 samples: 1 to 50"):
        split(name, 51, min_size=4)
    assert len(split(name, 50, min_size=4)) == 50


def test_iid_and_dirichlet_have_the_bits_they_had_in_the_first_results():
    digests = [
        sum(int(indices.sum()) * (number + 1) for number, indices in enumerate(split(name, 5, 3)))
        for name in ("iid", "dirichlet")
    ]
    assert digests == [62750, 74464]


def test_quantity_makes_clients_of_other_sizes_and_of_the_same_classes():
    labels = torch.arange(3000) % 5
    clients = split("quantity", 4, 1, labels, beta=0.5)
    sizes = sorted(len(indices) for indices in clients)
    assert sizes[-1] > 3 * sizes[0]
    for indices in clients:
        share = labels[indices].bincount(minlength=5) / len(indices)
        assert (share - 0.2).abs().max() < 4 * (0.16 / len(indices)) ** 0.5  # 4 standard deviations


def test_the_holders_of_a_class_share_it_evenly():
    labels = torch.arange(10).repeat_interleave(100)
    clients = split("classes", 10, 0, labels, classes=2)
    assert [len(indices) for indices in clients] == [100] * 10
    assert all(labels[indices].bincount(minlength=10).unique().tolist() == [0, 50] for indices in clients)
    pairs = {tuple(labels[indices].unique().tolist()) for indices in clients}
    assert len(pairs) > 5  # drawn, and not dealt in a circle


@pytest.mark.parametrize(
    ("name", "num_clients", "fields", "message"),
    [
        ("classes", 4, {"classes": 6}, r"data\.partition\.classes=6; allowed with 5 classes: 1 to 5"),
        ("classes", 2, {"classes": 2}, "hold 4 of the 5 classes; allowed: 3 classes or more, or more clients"),
        ("classes", 60, {"classes": 5}, r"class \d has \d+ samples for 60 clients"),
        ("classes", 5, {"classes": 1, "min_size": 39}, r"min_size=39, but a client would have \d+ samples"),
    ],
)
def test_classes_that_cannot_be_shared_out_are_refused(name, num_clients, fields, message):
    with pytest.raises(UserError, match=message):
        split(name, num_clients, **fields)


@pytest.mark.parametrize("name", ["dirichlet", "classes"])
def test_a_split_by_labels_of_unlabelled_images_is_refused(name):
    fields = {"classes": 2} if name == "classes" else {}
    with pytest.raises(UserError, match=f"name={name} needs labels, .*allowed: iid, quantity, groups"):
        split(name, 2, labels=torch.full((50,), -1), **fields)
    assert len(split("iid", 2, labels=torch.full((50,), -1))) == 2


@pytest.mark.parametrize(
    "fields",
    [{"name": "classes"}, {"name": "groups"}, {"name": "iid", "classes": 2}, {"name": "iid", "file": "a.csv"}],
)
def test_a_key_of_one_partition_is_needed_there_and_refused_elsewhere(fields):
    with pytest.raises(ValueError, match="allowed: name="):
        PartitionConfig.model_validate(fields)


def grouped(folder: Path, text: str, names: list[str], num_clients: int = 2) -> list[list[int]]:
    (folder / "groups.csv").write_text(text, encoding="utf-8")
    config = PartitionConfig(name="groups", file=str(folder / "groups.csv"))
    labels = torch.full((len(names),), -1)
    return [indices.tolist() for indices in partition(labels, num_clients, config, torch.Generator(), names)]


GROUPS = "image,group,site\nd,west,1\na,east,1\nb,west,2\nc,east,2\nz,north,3\n"


def test_each_group_is_a_client_in_the_order_of_the_file(tmp_path):
    assert grouped(tmp_path, GROUPS, list("abcd")) == [[1, 3], [0, 2]]
    assert grouped(tmp_path, "\ufeff" + GROUPS.replace("\n", "\r\n"), list("abcd")) == [[1, 3], [0, 2]]


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        (GROUPS, "abcde", "image 'e' is in no group; add its line"),
        (GROUPS, "abcdz", r"num_clients=2, but .*groups\.csv has 3 groups with images; allowed: 3"),
        ("image,group\na,1\nb,1\nc,1\nd,2\n", "abcd", "group '2' has 1 images; allowed: 2"),
        ("a,1\nb,1\nc,2\nd,2\n", "abcd", "its first line must name the columns image and group"),
        ("image,group\na,1\na,2\n", "abcd", "line 3: 'a' has a group already"),
        ("image,group\na,1\nb\n", "abcd", "line 3 lacks an image or a group"),
        ('image,group\n"a,1\n', "abcd", "cannot be read"),
    ],
)
def test_a_file_of_groups_that_does_not_fit_is_named_with_the_line_or_image(tmp_path, text, names, message):
    with pytest.raises(UserError, match=message):
        grouped(tmp_path, text, list(names))


def test_a_file_of_groups_that_is_absent_is_named(tmp_path):
    config = PartitionConfig(name="groups", file=str(tmp_path / "none.csv"))
    with pytest.raises(UserError, match=r"none\.csv: cannot be read"):
        partition(LABELS, 2, config, torch.Generator(), ["a"] * 203)
