"""Finding plugins: by file name, by entry point, by dotted path, or by the path of a Python file.

A plugin is a class in a module of its own. The name of a built-in one is its file's name in `methods/federation/`,
`methods/mechanisms/`, `methods/ssl/`, `methods/encoders/`, `methods/transforms/` or `fedbench/data/sources/`; a
package registers its own in the entry point groups `fedbench.strategies`, `fedbench.mechanisms`, `fedbench.ssl`,
`fedbench.encoders`, `fedbench.transforms` and `fedbench.datasets`; anything else is named by
`package.module:Class`, `package.module` or `path/to/file.py` (`:Class` where the file has several). Code is
executed only from where the user points.
"""

import ast
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from types import ModuleType
from typing import Literal, TypeGuard, TypeVar

from fedbench.errors import UserError, suggest
from fedbench.files import config_names, user_path
from fedbench.plugin_files import Home, digest, home_of, own_files

Kind = Literal["strategies", "mechanisms", "ssl", "encoders", "transforms", "datasets"]
PACKAGES: dict[Kind, tuple[str, str]] = {  # a package that imports no torch, and the one inside it
    "strategies": ("fedbench.methods", "federation"),
    "mechanisms": ("fedbench.methods", "mechanisms"),
    "ssl": ("fedbench.methods", "ssl"),
    "encoders": ("fedbench.methods", "encoders"),
    "transforms": ("fedbench.methods", "transforms"),
    "datasets": ("fedbench", "data.sources"),
}
Plugin = TypeVar("Plugin")
_files: dict[str, dict[str, bytes]] = {}  # module of a plugin file -> what it is made of, as it was loaded
_hashes: dict[type, str] = {}  # of the files of a plugin, as they were loaded
_helpers: dict[Path, bytes] = {}  # modules that plugin files import from their folder, as they were loaded


def is_kind(name: str) -> TypeGuard[Kind]:
    """Whether `name` is a kind of plugin."""
    return name in PACKAGES


def builtin_files(kind: Kind) -> dict[str, Path]:
    """Name -> file of every built-in plugin of a kind."""
    outer, inner = PACKAGES[kind]
    folder = Path(str(resources.files(outer))).joinpath(*inner.split("."))
    return {path.stem: path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")}


def entry_points(kind: Kind) -> dict[str, metadata.EntryPoint]:
    """Name -> entry point of every installed plugin of a kind."""
    return _entry_points(kind, tuple(sys.path))


@cache
def _entry_points(kind: Kind, path: tuple[str, ...]) -> dict[str, metadata.EntryPoint]:
    """Those in the folders of `path`: 3 ms where a hundred packages lie, and a run may ask 250 times."""
    return {point.name: point for point in metadata.entry_points(group=f"fedbench.{kind}")}


def describe(kind: Kind) -> dict[str, str]:
    """Name -> first line of the module's docstring (built-in) or the entry point's target; nothing is imported."""
    builtin = {name: first_line(path) for name, path in builtin_files(kind).items()}
    return builtin | {name: point.value for name, point in entry_points(kind).items() if name not in builtin}


def load_plugin(kind: Kind, name: str, base: type[Plugin]) -> type[Plugin]:
    """The plugin class called `name`, a subclass of `base`.

    Raises:
        UserError: nothing has that name, it cannot be imported, or it has no or several subclasses of `base`.
    """
    with blamed(f"plugin {name!r}"):
        plugin = _load(kind, name, base)
        source_hash(plugin)  # of the files as they are now
        return plugin


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """An exception of a plugin's own code becomes a UserError that begins with `what` and says where it arose."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {type(error).__name__}: {error} ({place_of(error)})") from error


def place_of(error: Exception) -> str:
    """File and line where an exception arose."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    place = [frame for frame in frames if not frame.filename.startswith("<frozen importlib")][-1]
    return f"{place.filename}, line {place.lineno}"


def _load(kind: Kind, name: str, base: type[Plugin]) -> type[Plugin]:
    builtin, points = builtin_files(kind), entry_points(kind)
    if name in builtin:
        return _only_class(importlib.import_module(".".join([*PACKAGES[kind], name])), base, name)
    if name in points:
        return _subclass(points[name].load(), base, name)
    target, _, attribute = name.partition(":")
    if target.endswith(".py"):
        module = _import_file(user_path(target))
    elif "." in target or ":" in name:
        module = _import_dotted(target, kind)
    else:
        raise UserError(f"{kind}: {unknown(kind, name)}")
    return (
        _subclass(getattr(module, attribute, None), base, name) if attribute else _only_class(module, base, name)
    )


def first_line(path: Path) -> str:
    """The first line of a module's docstring, without importing it."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n", 1)[0]


def is_place(name: str) -> bool:
    """Whether a plugin is named by its file or a dotted path, and not by what it is registered under."""
    return any(sign in name for sign in "./:")


def short_name(name: str) -> str:
    """Without the folders of a path: `ideas/mine.py` -> `mine.py`."""
    return name.rpartition("/")[2]


def is_known(kind: Kind, name: str) -> bool:
    """Whether a plugin has that name; what is written as a file or a dotted path is taken to be there."""
    return is_place(name) or name in builtin_files(kind) or name in entry_points(kind)


def unknown(kind: Kind, name: str) -> str:
    """That no plugin has a name, and which names there are."""
    presets = config_names(kind) if kind == "strategies" else []
    names = [*builtin_files(kind), *entry_points(kind), *presets]
    return f"{name!r} is not known; {suggest(name, names)}, package.module:Class, or a path ending in .py"


def _import_file(path: Path) -> ModuleType:
    """The module of a file, executed once as long as it does not change; two files of one name are two modules."""
    if not path.is_file():
        raise UserError(f"plugin file {str(path)!r} does not exist")
    place = path.resolve()
    files = own_files(place, Home(place.parent, ""))
    name = f"fedbench_plugin_{path.stem}_{digest(str(place), files)[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    helpers = {place.parent / other: content for other, content in files.items() if other != place.name}
    _forget_changed(helpers)
    _forget_namesakes(helpers, place.parent)
    before = set(sys.modules)
    sys.modules[name] = module  # dataclasses look their own module up
    try:
        exec(compile(files[place.name], path, "exec"), vars(module))  # what was read, and not what is there by now
    except BaseException:
        del sys.modules[name]
        raise
    _files[name] = files
    _helpers.update(helpers)
    _check_helpers(path, helpers, place.parent)
    _tell_of_others(path, helpers, {name: sys.modules[name] for name in sys.modules.keys() - before})
    return module


def _forget_changed(helpers: Mapping[Path, bytes]) -> None:
    """Let all be imported anew if one has changed since a plugin imported it: others may hold what was in it."""
    if all(_helpers.get(path, content) == content for path, content in helpers.items()):
        return
    for name, module in list(sys.modules.items()):
        if (file := getattr(module, "__file__", None)) and Path(file) in helpers:
            del sys.modules[name]
    for path in helpers:  # bytecode tells a change by whole seconds and the file's size
        Path(importlib.util.cache_from_source(path)).unlink(missing_ok=True)


def _module_name(helper: Path, folder: Path) -> str:
    """By which a file in `folder`, or below it, is imported from there."""
    parts = helper.relative_to(folder).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _file_of(module: ModuleType | None) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file else None


def _forget_namesakes(helpers: Iterable[Path], folder: Path) -> None:
    """Let other plugins' helpers be forgotten that have the name of one of these: Python would hand them on."""
    for name in [_module_name(helper, folder) for helper in helpers]:
        if (file := _file_of(sys.modules.get(name))) in _helpers and file not in helpers:
            del sys.modules[name]


def _check_helpers(path: Path, helpers: Iterable[Path], folder: Path) -> None:
    """Refuse a plugin that got another file under the name of one of its own, whose hash would speak for it."""
    for helper in helpers:
        name = _module_name(helper, folder)
        if (file := _file_of(sys.modules.get(name))) in (None, helper.resolve()):
            continue
        raise UserError(
            f"plugin {path}: `import {name}` gave {file}, and not {helper} beside it; allowed: a name that no "
            "other module has"
        )


def _tell_of_others(path: Path, helpers: Iterable[Path], new: Mapping[str, ModuleType]) -> None:
    """Warn of modules from a plugin's folder that its text does not name: their content is not in its hash."""
    folder, known = path.resolve().parent, {path.resolve(), *helpers}
    for name, module in sorted(new.items()):
        file = _file_of(module)
        if file is not None and file.is_relative_to(folder) and file not in known:
            print(
                f"fedbench: plugin {path} imports {name} under a name that is computed: a change of {file} will "
                "not be noticed, and finished runs stay finished",
                file=sys.stderr,
            )


def _import_dotted(target: str, kind: Kind) -> ModuleType:
    try:
        return importlib.import_module(target)
    except (TypeError, ValueError) as error:  # a relative or an empty name
        raise UserError(f"{kind}: {unknown(kind, target)}") from error
    except ModuleNotFoundError as error:
        if error.name is None or not f"{target}.".startswith(f"{error.name}."):
            raise  # the plugin itself imports something that is missing
        raise UserError(f"{kind}: {unknown(kind, target)}") from error


def _only_class(module: ModuleType, base: type[Plugin], name: str) -> type[Plugin]:
    """The one concrete subclass of `base` that the module defines itself."""
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, base)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]
    if len(found) != 1:
        classes = ", ".join(value.__name__ for value in found) or "none"
        raise UserError(
            f"plugin {name!r} must define one subclass of {base.__name__}, it defines {classes}; "
            f"with several, name one: {name}:Class"
        )
    return found[0]


def _subclass(value: object, base: type[Plugin], name: str) -> type[Plugin]:
    if inspect.isclass(value) and issubclass(value, base) and not inspect.isabstract(value):
        return value
    raise UserError(f"plugin {name!r} is {value!r}; allowed: a whole subclass of {base.__name__}")


def source_hash(cls: type) -> str:
    """SHA-256 of the class's name and the plugin's files as they were when it was loaded, as hex; see `own_files`.

    Two files of one name are two plugins. Of a built-in one it is that of its own file: the commit tells the rest.
    """
    if cls not in _hashes:
        _hashes[cls] = digest(cls.__qualname__, _files.get(cls.__module__) or _files_of(cls))
    return _hashes[cls]


def _files_of(cls: type) -> dict[str, bytes]:
    """Of a plugin that Python's import system loaded."""
    module, file = sys.modules[cls.__module__], Path(inspect.getfile(cls)).resolve()
    if cls.__module__.startswith("fedbench."):
        return {file.name: file.read_bytes()}
    return own_files(file, home_of(module, file))
