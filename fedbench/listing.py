"""`list KIND NAME`: what one thing is, its keys with defaults and meanings, where it is defined, its presets."""

import inspect
from collections.abc import Iterable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from fedbench.config import config_names, resolve_file
from fedbench.config.keys import Key, config_keys, schema_keys
from fedbench.config.schema import ENCODER_KEYS
from fedbench.data.source import DataSource
from fedbench.encoders import Architecture, Transform
from fedbench.federation import Mechanism, Strategy
from fedbench.federation.naming import presets_of
from fedbench.federation.strategy import mechanism_names
from fedbench.plugins import load_plugin
from fedbench.ssl import SSLMethod, config_class


def explain_one(kind: str, name: str) -> str:
    """All that there is to know of a name.

    Raises:
        UserError: nothing of that kind has the name.
    """
    return {
        "strategies": _strategy,
        "mechanisms": _mechanism,
        "ssl": _ssl,
        "encoders": _encoder,
        "transforms": _transform,
        "datasets": _dataset,
        "grids": lambda name: _file("grids", name),
        "presets": lambda name: _file("presets", name),
    }[kind](name)


def _strategy(name: str) -> str:
    if name in config_names("strategies"):
        return _file("strategies", name)
    cls: Any = load_plugin("strategies", name, Strategy)
    presets = [f"strategy={preset}: {_inline(tree)}" for preset, tree in presets_of(name).items()]
    more = f"Any of these can be added: {', '.join(f'strategy.{one}=true' for one in mechanism_names())}."
    return _page(
        _about(cls), _fields(cls, "strategy.") or "No keys of its own.", *_titled("Presets", presets), more
    )


def _inline(preset: dict[str, Any]) -> str:
    words = {key: value for key, value in preset.items() if key != "name"}
    return str(yaml.safe_dump(words, default_flow_style=True, width=10_000)).strip()


def _mechanism(name: str) -> str:
    cls: Any = load_plugin("mechanisms", name, Mechanism)
    how = f"Switched on by strategy.{name}=true, or by one of its keys."
    return _page(_about(cls), how, _fields(cls, f"strategy.{name}."))


def _ssl(name: str) -> str:
    cls = load_plugin("ssl", name, SSLMethod)
    return _page(_about(cls), _keys(schema_keys(config_class(cls).model_json_schema(), "ssl.")))


def _encoder(name: str) -> str:
    cls: Any = load_plugin("encoders", name, Architecture)
    common = [
        key for key in config_keys("encoder") if key.name.removeprefix("encoder.") in ENCODER_KEYS - {"name"}
    ]
    return _page(_about(cls), _keys(common), _fields(cls, "encoder."))


def _transform(name: str) -> str:
    cls: Any = load_plugin("transforms", name, Transform)
    how = f"Switched on by encoder.transforms=[{name}], or [{{name: {name}, its keys}}]."
    return _page(_about(cls), how, _fields(cls, "") or "No keys of its own.")


def _dataset(name: str) -> str:
    cls = load_plugin("datasets", name, DataSource)  # type: ignore[type-abstract]
    facts = [
        "data.path must be given." if cls.needs_path else "",
        "data.download=true fetches it." if cls.downloads else "",
        "data.labels=false makes a set without labels of it." if cls.labels_optional else "",
        f"Published in {', '.join(map(str, cls.sizes))} pixels (data.size)." if cls.sizes else "",
    ]
    return _page(_about(cls), " ".join(filter(None, facts)), _keys(config_keys("data")))


def _file(kind: str, name: str) -> str:
    path = resolve_file(name, kind)
    return f"{path}\n\n{path.read_text(encoding='utf-8').strip()}"


def _about(thing: Any) -> str:
    """The docstring of a class and of its module, and where they are."""
    module = inspect.getmodule(thing)
    texts = dict.fromkeys(inspect.cleandoc(one.__doc__ or "") for one in (module, thing) if one is not None)
    return _page(*texts, f"Defined in {Path(inspect.getfile(thing))}")


def _fields(cls: Any, prefix: str) -> str:
    """The keys of a plugin; what is inherited is explained where it is defined."""
    keys = [key for base in cls.__mro__ if is_dataclass(base) for key in _own_keys(base, prefix)]
    meanings = {key.name: key.meaning for key in keys if key.meaning}
    return _keys(key._replace(meaning=meanings.get(key.name, "")) for key in _own_keys(cls, prefix))


def _own_keys(cls: Any, prefix: str) -> list[Key]:
    return list(schema_keys(TypeAdapter(cls).json_schema(), prefix))


def _keys(keys: Iterable[Key]) -> str:
    return "\n".join(map(str, keys))


def _titled(title: str, lines: list[str]) -> list[str]:
    return ["\n".join([title, *(f"  {line}" for line in lines)])] if lines else []


def _page(*parts: str) -> str:
    return "\n\n".join(filter(None, parts))
