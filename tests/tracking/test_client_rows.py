"""clients.arrow against pyarrow's own reader of streams, and against what somebody may put in its place."""

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from fedbench.errors import UserError
from fedbench.tracking.client_rows import SCHEMA, batch
from fedbench.tracking.run_directory import RunDirectory


def columns(number: int, size: int = 3) -> dict[str, list[Any]]:
    """Of a round: a client with all figures, one whose update was rejected, and others that were lost."""
    found: dict[str, list[Any]] = {name: [None] * size for name in SCHEMA.names}
    found["round"], found["client"] = [number] * size, list(range(size, 0, -1))
    found["state"] = ["returned", "rejected", *["lost_before"] * (size - 2)][:size]
    if size > 1:
        found["reason"][1], found["loss"][:2] = "is not finite", [0.1 + number, math.nan]
    found["upload_bytes"] = [2**40 + number] * size
    return found


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """Of a run of three rounds, which is not finished."""
    directory = RunDirectory(tmp_path / "run")
    directory.start({})
    for number in range(3):
        directory.append_clients(columns(number))
        directory.append_round({"round": number})
        directory.append_ledger(["client"], [[0]])
    return directory


def file_of(directory: RunDirectory) -> Path:
    return directory.path / "clients.arrow"


def test_what_is_written_is_what_pyarrow_reads_as_a_stream(directory: RunDirectory) -> None:
    with file_of(directory).open("rb") as file:
        found = pa.ipc.open_stream(file).read_all()
    expected = [columns(number) for number in range(3)]
    for name in SCHEMA.names:
        assert str(found[name].to_pylist()) == str([value for one in expected for value in one[name]])
    assert directory.clients().schema == SCHEMA
    assert str(directory.clients().to_pydict()) == str(found.to_pydict())


def test_a_round_is_added_behind_what_is_there_and_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    def grown(name: str) -> Iterator[bytes]:
        directory = RunDirectory(tmp_path / name)
        directory.start({})
        for number in range(3):
            directory.append_clients(columns(number))
            yield file_of(directory).read_bytes()

    contents = list(grown("one"))
    assert all(after.startswith(before) and after != before for before, after in pairwise(contents))
    assert list(grown("two")) == contents


def test_a_run_of_no_rounds_has_no_rows(tmp_path: Path) -> None:
    RunDirectory(tmp_path).start({})
    assert RunDirectory(tmp_path).clients().equals(SCHEMA.empty_table())


def test_a_round_without_clients_has_no_rows(directory: RunDirectory) -> None:
    directory.append_clients(columns(3, size=0))
    directory.append_round({"round": 3})
    assert directory.clients().num_rows == 9


@pytest.mark.parametrize("written", [1, 99, 1500, None])
def test_a_round_that_is_just_being_written_is_left_out(directory: RunDirectory, written: int | None) -> None:
    before = directory.clients()
    with file_of(directory).open("ab") as file:
        file.write(batch(columns(3))[:written])
    assert str(directory.clients().to_pydict()) == str(before.to_pydict())


def test_a_finished_run_gives_no_rows_that_it_did_not_write(directory: RunDirectory) -> None:
    directory.finish({}, {"w": torch.ones(1)})
    assert directory.clients().num_rows == 9
    content = bytearray(file_of(directory).read_bytes())
    content[content.rindex(b"is not finite")] ^= 1
    file_of(directory).write_bytes(content)
    with pytest.raises(UserError, match=r"clients\.arrow is not what was written; `verify` checks every file"):
        directory.clients()


def test_a_file_that_is_missing_or_too_short_is_told(directory: RunDirectory) -> None:
    content = file_of(directory).read_bytes()
    end = len(content) - len(batch(columns(2)))
    early, damaged = "it ends before the last round", "it is not what a run writes"
    for size, words in ((0, early), (end, early), (end + 40, damaged), (len(content) - 1, damaged)):
        file_of(directory).write_bytes(content[:size])
        with pytest.raises(UserError, match=words):
            directory.clients()
    file_of(directory).unlink()
    with pytest.raises(UserError, match=r"clients\.arrow is missing: it was removed, or the run is of an earlier"):
        directory.clients()


def test_other_columns_are_refused(directory: RunDirectory) -> None:
    other = pa.record_batch({"round": [0]})
    file_of(directory).write_bytes(bytes(other.schema.serialize()) + 3 * bytes(other.serialize()))
    with pytest.raises(UserError, match="its columns are not those of a run"):
        directory.clients()


@pytest.mark.parametrize("place", [0, 20])
def test_what_begins_as_no_schema_ends_in_a_sentence(directory: RunDirectory, place: int) -> None:
    """One changed byte at the second place has let pyarrow's reader of single messages crash the process."""
    content = bytearray(file_of(directory).read_bytes())
    content[place] ^= 0xC7
    file_of(directory).write_bytes(content)
    with pytest.raises(UserError, match="it is not what a run writes"):
        directory.clients()


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_what_is_compressed_is_refused_before_it_takes_memory(directory: RunDirectory, codec: str) -> None:
    """A few kilobytes that become 100 MB."""
    large = pa.record_batch([pa.nulls(10**6, field.type) for field in SCHEMA], schema=SCHEMA)
    options = pa.ipc.IpcWriteOptions(compression=codec)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA, options=options) as writer:
        writer.write_batch(large)
    content = bytes(sink.getvalue())
    assert len(content) < large.nbytes / 100
    (directory.path / "rounds.jsonl").write_text('{"round": 0}\n')
    file_of(directory).write_bytes(content)
    del large
    before = pa.default_memory_pool().bytes_allocated()
    highest = pa.default_memory_pool().max_memory()
    with pytest.raises(UserError, match="it is not what a run writes"):
        directory.clients()
    assert pa.default_memory_pool().bytes_allocated() == before
    assert pa.default_memory_pool().max_memory() == highest
