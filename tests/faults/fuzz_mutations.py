"""Seeded plain mutations: of bytes, of text by tokens, and of JSON by its nodes."""

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

NUMBERS = (
    b"0",
    b"-1",
    b"1e999",
    b"-0.0",
    b"nan",
    b".inf",
    b"9" * 19,
    b"9" * 400,
    b"0x7f",
    b"1_0",
    b"1:30",
    b"1.5",
    b"true",
)
YAML = (
    b"!!int ",
    b"!!float ",
    b"!!bool ",
    b"!!binary ",
    b"!!timestamp ",
    b"!!python/name:os ",
    b"2024-13-45",
    b"<<: ",
    b"? ",
)
YAML += (
    b"- ",
    b"- - - ",
    b"{",
    b"}",
    b"[",
    b"]",
    b": ",
    b",",
    b"&a ",
    b"*a",
    b"|\n",
    b">\n",
    b"# ",
    b"---\n",
    b"...\n",
    b"%YAML 9\n",
)
YAML += (
    b"'",
    b'"',
    b"\\x00",
    b"~",
    b"null",
    b"=",
    b"@",
    b"`",
    b"\t",
    b"\n",
    b"  ",
    b"\xef\xbb\xbf",
    b"\xff",
    b"\xed\xa0\x80",
    b"\0",
)
JSON = (b"{", b"}", b"[", b"]", b'"', b":", b",", b"null", b"true", b"NaN", b"Infinity", b"\\ud800", b"\\u0000")
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    1e308,
    -1e308,
    10**30,
    float("nan"),
    float("inf"),
    "",
    "x",
    "..",
    "/",
    "\0",
)
ODD += ("x" * 3000, [], {}, [[]], {"": None}, [None], "\ud800", "%s", "{}", "<b>", "a,b\n|c")


def mutated(seeds: Sequence[bytes], tokens: Sequence[bytes], draw: random.Random) -> bytes:
    """One of the seeds, changed in one to four places."""
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 2, 4))):
        _change(data, seeds, tokens, draw)
    return bytes(data[: 1 << 16])


def _change(data: bytearray, seeds: Sequence[bytes], tokens: Sequence[bytes], draw: random.Random) -> None:
    at = draw.randrange(len(data) + 1)
    end = min(len(data), at + draw.choice((1, 1, 2, 4, 8, 64)))
    match draw.randrange(8):
        case 0:
            data[at:end] = b""
        case 1:
            data[at:at] = draw.choice(tokens)
        case 2:
            data[at:end] = draw.choice(tokens)
        case 3:
            data[at:end] = draw.randbytes(end - at)
        case 4:
            data[at:end] = bytes([draw.choice((0, 1, 127, 128, 255))]) * (end - at)
        case 5:
            data[at:at] = data[at:end] * draw.choice((1, 2, 100))
        case 6:
            other = draw.choice(seeds)
            start = draw.randrange(len(other) + 1)
            data[at:end] = other[start : start + draw.choice((4, 16, 64, 256))]
        case _ if data:
            data[at % len(data)] ^= 1 << draw.randrange(8)


def mutated_json(seeds: Sequence[bytes], draw: random.Random) -> bytes:
    """One of the seeds with one or two of its nodes replaced, removed or given twice."""
    tree = json.loads(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 2))):
        parent, key = draw.choice(list(_places(tree)))
        if draw.random() < 0.15:
            del parent[key]
        else:
            parent[key] = draw.choice(ODD)
        if not tree:
            break
    return json.dumps(tree).encode()


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with every key of it."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])
