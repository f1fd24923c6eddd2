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
COMPRESSION = 3  # number of the field in the format's table `RecordBatch`; 2: of the header in `Message`


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
    source = pa.BufferReader(content)  # messages are views of it
    try:
        if not pa.ipc.read_schema(pa.ipc.read_message(source)).equals(SCHEMA):
            raise ValueError("its columns are not those of a run")
        batches = [_batch(pa.ipc.read_message(source)) for _ in range(num_rounds)]
    except EOFError:
        raise ValueError("it ends before the last round") from None
    except (pa.ArrowException, OSError, struct.error):
        raise ValueError("it is not what a run writes") from None
    return pa.Table.from_batches(batches, SCHEMA)


def _batch(message: pa.Message) -> pa.RecordBatch:
    if message.type != "record batch" or _is_compressed(bytes(message.metadata)):
        raise ValueError("it is not what a run writes")
    found = pa.ipc.read_record_batch(message, SCHEMA)
    found.validate(full=True)
    return found


def _is_compressed(metadata: bytes) -> bool:
    """Whether a few bytes may become a great many; pyarrow would tell only when they have."""
    (message,) = struct.unpack_from("<I", metadata)
    header = _field(metadata, message, 2)
    (record_batch,) = struct.unpack_from("<I", metadata, header)
    return _field(metadata, header + record_batch, COMPRESSION) != 0


def _field(metadata: bytes, table: int, number: int) -> int:
    """Where a field of a FlatBuffers table lies; 0 if it is not there."""
    (back,) = struct.unpack_from("<i", metadata, table)
    offsets = table - back
    (size,) = struct.unpack_from("<H", metadata, offsets)
    if 4 + 2 * number >= size:
        return 0
    (offset,) = struct.unpack_from("<H", metadata, offsets + 4 + 2 * number)
    return table + offset if offset else 0
