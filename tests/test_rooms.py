"""What may import what: each room those below it, and none a room above it (docs/design.md)."""

import ast
from pathlib import Path

import pytest

import fedbench

SOURCE = Path(fedbench.__file__).parent
ROOMS = [  # from the ground up; rooms of one line do not know each other
    {"errors", "escaping", "exits", "stopping", "worker_server"},
    {
        "files",
        "random",
        "conventions",
        "protocols",
        "tables",
        "waiting",
        "masking",
        "plugin_files",
        "plugin_fields",
        "tensor_file",
    },
    {"plugins"},
    {"config"},
    {"numerics", "workers", "ray_cluster", "encoders", "losses", "budgets", "remembered", "scaffold"},
    {"ssl", "data"},
    {"training"},
    {"metering"},
    {"federation"},
    {"evaluation", "tracking", "profiling", "conformance", "listing"},
    {"pretrained", "reporting"},
    {"running"},
    {"api", "cli"},
    {"__init__", "__main__", "templates"},
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Rooms that a file imports, wherever in it that stands; `fedbench` itself is none."""
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "fedbench":
            names |= {f"fedbench.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.split(".")[1] for name in names if name.startswith("fedbench.")} & LEVEL.keys()


FILES = sorted(SOURCE.rglob("*.py"))


def test_every_room_has_its_place() -> None:
    assert {room_of(path) for path in FILES} == LEVEL.keys()


@pytest.mark.parametrize("room", sorted(LEVEL))
def test_a_room_imports_those_below_it(room: str) -> None:
    above = {
        f"{path.relative_to(SOURCE)} imports {other}"
        for path in FILES
        if room_of(path) == room
        for other in imported(path)
        if other != room and LEVEL[other] >= LEVEL[room]
    }
    assert above == set()
