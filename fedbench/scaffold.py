"""`new`: a working plugin of the user's own, and its test."""

from importlib import resources
from pathlib import Path

from fedbench.errors import UserError
from fedbench.files import write_atomically

TEMPLATES = {  # kind -> how it is named on the command line afterwards
    "strategy": "fedbench check {file}",
    "mechanism": "fedbench check {file}",
    "ssl": "fedbench check {file}",
    "encoder": "fedbench check {file}",
    "transform": "fedbench check {file}",
    "data": "fedbench run data={file}",
}


def write_plugin(kind: str, file: Path) -> tuple[Path, str]:
    """Write `file` and a test beside it, the class called after the file; returns the test, and a command to try.

    Raises:
        UserError: a file is there already, or the name cannot be a module's.
    """
    if file.suffix != ".py" or not file.stem.isidentifier():
        raise UserError(f"new {kind} {file}; allowed: a file like mine.py, of letters, digits and _")
    if not file.parent.is_dir():
        raise UserError(f"new {kind} {file}: {file.parent} is no folder; allowed: one that is there")
    test = file.with_name(f"test_{file.name}")
    for path in (file, test):
        if path.exists():
            raise UserError(f"new {kind} {file}: {path} is there already; allowed: another name")
    name = "".join(part[:1].upper() + part[1:] for part in file.stem.split("_")) or "Mine"
    for path, template in ((file, kind), (test, f"{kind}_test")):
        text = (resources.files("fedbench.templates") / f"{template}.py").read_text(encoding="utf-8")
        write_atomically(path, text.replace("mine.py", file.name).replace("Mine", name).encode())
    shown = str(file) if file.is_absolute() else f"./{file}"
    return test, TEMPLATES[kind].format(file=shown)
