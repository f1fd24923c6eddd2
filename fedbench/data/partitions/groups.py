"""The partition `groups`: a file says whose each image is, as of hospitals, writers or devices."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedbench.config.schema import PartitionConfig
from fedbench.errors import UserError, shown
from fedbench.files import user_path

COLUMNS = ("image", "group")


def by_groups(names: Sequence[str], num_clients: int, config: PartitionConfig) -> list[Tensor]:
    """The indices into `names` of each group, in the order in which the file first names one.

    UserError: an image is in no group, or there are not `num_clients` groups of `config.min_size` images or more.
    """
    assert config.file is not None
    group_of = read_groups(user_path(config.file))
    members: dict[str, list[int]] = {group: [] for group in group_of.values()}
    for index, name in enumerate(names):
        if name not in group_of:
            raise UserError(f"data.partition.file={config.file}: image {shown(name)} is in no group; add its line")
        members[group_of[name]].append(index)
    clients = {group: indices for group, indices in members.items() if indices}
    _check(clients, num_clients, config)
    return [torch.tensor(indices) for indices in clients.values()]


def read_groups(file: Path) -> dict[str, str]:
    """Image -> group. UserError: the file, or the line, that is not as it must be."""
    try:
        if not file.is_file():  # of a pipe there is no end
            raise FileNotFoundError("no such file")
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened, strict=True)
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                raise UserError(
                    f"data.partition.file={file}: its first line must name the columns image and group"
                )
            return _read_rows(file, reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"data.partition.file={file}: cannot be read ({why}); allowed: a CSV file") from error


def _read_rows(file: Path, reader: "csv.DictReader[str]") -> dict[str, str]:
    group_of: dict[str, str] = {}
    for row in reader:
        image, group = (row[column] for column in COLUMNS)
        if not image or not group:
            raise UserError(f"data.partition.file={file}: line {reader.line_num} lacks an image or a group")
        if group_of.setdefault(image, group) != group:
            raise UserError(
                f"data.partition.file={file}: line {reader.line_num}: {shown(image)} has a group already"
            )
    return group_of


def _check(clients: Mapping[str, Sequence[int]], num_clients: int, config: PartitionConfig) -> None:
    if len(clients) != num_clients:
        raise UserError(
            f"federation.num_clients={num_clients}, but data.partition.file={config.file} has "
            f"{len(clients)} groups with images; allowed: {len(clients)}"
        )
    smallest = min(clients, key=lambda group: len(clients[group]))
    if len(clients[smallest]) < config.min_size:
        raise UserError(
            f"data.partition.file={config.file}: group {shown(smallest)} has {len(clients[smallest])} images; "
            f"allowed: {config.min_size} (data.partition.min_size) or more"
        )
