"""The files that a plugin is made of: its own, and those that it imports from its own folder or package.

They belong to its identity. They are found by reading import statements, at any depth of a file; nothing is
executed. What is imported by a name that is computed, and data files that a plugin reads, are not seen.
"""

import ast
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

INSTALLED = ("site-packages", "dist-packages")  # a folder in which modules of many projects lie


class Home(NamedTuple):
    """Where a plugin's own modules lie: `root` is the folder that imports begin from.

    `package`: the top-level package that the plugin is in; "" for a file on its own, whose folder is `root`.
    """

    root: Path
    package: str

    def has(self, parts: list[str]) -> bool:
        """Whether an import of `parts` can be one of the plugin's own modules."""
        alone = not self.package and self.root.name not in INSTALLED
        return bool(parts) and (parts[0] == self.package if self.package else alone)


def home_of(module: ModuleType, file: Path) -> Home:
    """Of a module that was loaded from `file`."""
    levels = module.__name__.count(".")
    return Home(file.parents[levels], module.__name__.partition(".")[0] if levels else "")


def own_files(file: Path, home: Home) -> dict[str, bytes]:
    """Path from the root -> content, of `file` and of all that it imports from its home, directly or not."""
    found: dict[Path, bytes] = {}
    todo = [file]
    while todo:
        path = todo.pop()
        if path not in found:
            found[path] = path.read_bytes()
            todo += _imports(path, found[path], home)
    return {str(path.relative_to(home.root)): found[path] for path in [file, *sorted(found.keys() - {file})]}


def _imports(file: Path, content: bytes, home: Home) -> Iterator[Path]:
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # importing it says so, with the line
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield from _modules(name.name.split("."), 0, file, home)
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            for name in node.names:
                yield from _modules([*parts, name.name], node.level, file, home)


def _modules(parts: list[str], level: int, file: Path, home: Home) -> Iterator[Path]:
    """The files of `parts` and of the packages that it is in, as far as they are there.

    `level`: dots in front of a relative import.
    """
    if not level and not home.has(parts):
        return
    folder = file.parents[level - 1] if level else home.root
    if not folder.is_relative_to(home.root):
        return
    for count in range(level == 0, len(parts) + 1):
        stem = folder.joinpath(*parts[:count])
        yield from (path for path in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py") if path.is_file())


def digest(class_name: str, files: dict[str, bytes]) -> str:
    """SHA-256, as hex, of a class's name and the files of its plugin; the first one's own name does not count."""
    (_, first), *others = files.items()
    whole = sha256(class_name.encode() + b"\0" + first)
    for name, content in others:
        whole.update(f"\0{name}\0{len(content)}\0".encode() + content)
    return whole.hexdigest()
