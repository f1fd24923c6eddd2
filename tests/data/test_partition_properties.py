"""Whatever the labels, clients and settings: a whole partition, or an error where there can be none."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbench.config.schema import PartitionConfig
from fedbench.data import partition
from fedbench.errors import UserError

Case = tuple[torch.Tensor, int, PartitionConfig]


@st.composite
def cases(draw: Any, name: str) -> Case:
    """Any labels, often with classes that are rare or absent; clients and a least size that they allow."""
    labels = draw(st.lists(st.integers(0, 7), min_size=4, max_size=120))
    num_clients = draw(st.integers(1, min(12, len(labels) // 2)))
    fields = {"name": name, "min_size": draw(st.integers(2, len(labels) // num_clients))}
    if name != "iid":
        fields["beta"] = draw(st.floats(0.01, 100))
    return torch.tensor(labels), num_clients, PartitionConfig.model_validate(fields)


@st.composite
def cases_of_classes(draw: Any) -> Case:
    """Classes that are large enough for any number of holders, and clients enough for any k."""
    sizes = draw(st.lists(st.integers(24, 40), min_size=1, max_size=8))
    order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))[order]
    k = draw(st.integers(1, len(sizes)))
    num_clients = draw(st.integers(-(-len(sizes) // k), 12))
    return labels, num_clients, PartitionConfig(name="classes", classes=k)


def split(case: Case, seed: int) -> list[torch.Tensor]:
    labels, num_clients, config = case
    return partition(labels, num_clients, config, torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=200)
@given(st.one_of(cases("iid"), cases("dirichlet"), cases("quantity"), cases_of_classes()), st.integers(0, 2**31))
def test_every_sample_is_at_one_client_each_has_enough_and_the_seed_decides(case: Case, seed: int) -> None:
    labels, num_clients, config = case
    clients = split(case, seed)
    assert len(clients) == num_clients
    assert torch.cat(clients).sort().values.tolist() == list(range(len(labels)))
    assert min(map(len, clients)) >= config.min_size
    assert all(indices.diff().gt(0).all() for indices in clients)
    assert all(map(torch.equal, clients, split(case, seed)))


@settings(deadline=None)
@given(cases_of_classes(), st.integers(0, 2**31))
def test_every_client_has_k_classes_and_every_class_as_many_holders_give_or_take_one(
    case: Case, seed: int
) -> None:
    labels, _, config = case
    held = [set(labels[indices].tolist()) for indices in split(case, seed)]
    assert {len(classes) for classes in held} == {config.classes}
    holders = [sum(name in classes for classes in held) for name in set(labels.tolist())]
    assert max(holders) - min(holders) <= 1


@settings(deadline=None)
@given(st.data(), st.sampled_from(["iid", "dirichlet", "quantity"]))
def test_one_client_more_than_the_least_size_allows_is_refused(data: Any, name: str) -> None:
    labels, _, config = data.draw(cases(name))
    most = len(labels) // config.min_size
    assert len(split((labels, most, config), 0)) == most
    with pytest.raises(UserError, match=rf"federation\.num_clients={most + 1} .*1 to {most}$"):
        split((labels, most + 1, config), 0)


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.integers(0, 2**31))
def test_every_image_is_at_the_client_of_its_group(groups: list[int], seed: int) -> None:
    names = [f"image{number}" for number in range(2 * len(groups))]
    group_of = dict(zip(names, [*groups, *groups], strict=True))  # each group twice or more
    with TemporaryDirectory() as folder:
        file = Path(folder) / "groups.csv"
        file.write_text("image,group\n" + "".join(f"{name},{group}\n" for name, group in group_of.items()))
        config = PartitionConfig(name="groups", file=str(file))
        generator = torch.Generator().manual_seed(seed)
        clients = partition(torch.zeros(len(names)), len(set(groups)), config, generator, names)
    assert torch.cat(clients).sort().values.tolist() == list(range(len(names)))
    held = [{group_of[names[index]] for index in client.tolist()} for client in clients]
    assert all(len(own) == 1 for own in held)
