"""clients.arrow: what is known of each client of each round, in columns.

An Arrow IPC stream: the schema, then a record batch for every round. It bears no mark of its end, which is
that of the file, so a round is added without touching what is there. Nothing in it is compressed: the values that
are read are views of the file's bytes, whoever wrote it.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

SCHEMA = pa.schema(
    {
        "round": pa.int32(),
        "stage": pa.int32(),
        "client": pa.int32(),
        "state": pa.string(),
        "reason": pa.string(),
        "num_samples": pa.int64(),
        "num_steps": pa.int64(),
        "loss": pa.float64(),
        "added_loss": pa.float64(),
        "effective_rank": pa.float64(),
        "seconds": pa.float64(),
        "worker_deaths": pa.int32(),
        "download_bytes": pa.int64(),
        "upload_bytes": pa.int64(),
        "flops": pa.int64(),
        "peak_memory_bytes": pa.int64(),
        "cuda_max_allocated_bytes": pa.int64(),
        "cuda_max_reserved_bytes": pa.int64(),
        "cuda_process_bytes": pa.int64(),
    }
)
# Of the format: https://arrow.apache.org/docs/format/Columnar.html, and Message.fbs for the numbers of its fields.
MARK = 0xFFFFFFFF  # before every message
IS_SCHEMA, IS_BATCH = 1, 3  # what a message is
TYPE, HEADER, BODY_LENGTH, COMPRESSION = 1, 2, 3, 3  # fields of a message; the last one, of its record batch


def head() -> bytes:
    """What stands before the first round."""
    return bytes(SCHEMA.serialize())


def batch(columns: Mapping[str, Sequence[Any]]) -> bytes:
    """A round: a value for each of its clients, by column."""
    return bytes(pa.RecordBatch.from_pydict(columns, schema=SCHEMA).serialize())


def read(content: bytes, num_rounds: int) -> pa.Table:
    """The rows of the first rounds in a file.

    Raises:
        ValueError: it is no file of ours, or ends too early.
    """
    try:
        end = _end(content, 0, IS_SCHEMA)
        for _ in range(num_rounds):
            end = _end(content, end, IS_BATCH)
        stream = pa.ipc.open_stream(pa.py_buffer(content)[:end])
        if not stream.schema.equals(SCHEMA):
            raise ValueError("its columns are not those of a run")
        table = stream.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, struct.error):
        raise ValueError("it is not what a run writes") from None
    return table


def _end(content: bytes, start: int, kind: int) -> int:
    """Where a message ends that begins at `start`, is what it is to be, and is not compressed.

    pyarrow would find out about that only when a few bytes have become a great many.
    """
    if start == len(content):
        raise ValueError("it ends before the last round")
    mark, size, root = struct.unpack_from("<IiI", content, start)
    message = start + 8 + root
    header, body = _field(content, message, HEADER), _number(content, message, BODY_LENGTH, "<q")
    (header_offset,) = struct.unpack_from("<I", content, header)
    compressed = kind == IS_BATCH and _field(content, header + header_offset, COMPRESSION)
    end = start + 8 + size + body
    whole = mark == MARK and size > 0 and body >= 0 and end <= len(content)
    if not whole or compressed or _number(content, message, TYPE, "<B") != kind:
        raise ValueError("it is not what a run writes")
    return end


def _number(content: bytes, table: int, number: int, form: str) -> int:
    """What a field of a FlatBuffers table holds; 0 where it is not there."""
    place = _field(content, table, number)
    return int(struct.unpack_from(form, content, place)[0]) if place else 0


def _field(content: bytes, table: int, number: int) -> int:
    """Where a field of a FlatBuffers table lies; 0 if it is not there."""
    (back,) = struct.unpack_from("<i", content, table)
    offsets = table - back
    (size,) = struct.unpack_from("<H", content, offsets)
    if size < 4 + 2 * number + 2:
        return 0
    (offset,) = struct.unpack_from("<H", content, offsets + 4 + 2 * number)
    return table + offset if offset else 0
