"""From keys of a configuration to a plugin: the fields of its dataclass are its keys."""

from collections.abc import Iterable, Mapping
from dataclasses import fields as fields_of
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from fedbench.errors import UserError, listed, shorten, shown, suggest

Plugin = TypeVar("Plugin")
# `__pydantic_config__` of every plugin with fields: closed, finite, each field explained by the text below it.
FIELDS = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
_adapters: dict[type, TypeAdapter[Any]] = {}


def field_names(cls: Any) -> list[str]:
    """The keys of a plugin: the fields of its dataclass, or of its section."""
    return list(cls.model_fields) if issubclass(cls, BaseModel) else [field.name for field in fields_of(cls)]


def build_plugin(
    cls: type[Plugin], fields: Mapping[str, Any], what: str, section: str, more: Iterable[str] = ()
) -> Plugin:
    """The plugin `what` with these fields; `more` names other keys that the section `section` allows.

    Raises:
        UserError: a field is unknown or of the wrong type.
    """
    try:
        plugin: Plugin = _adapter(cls).validate_python(dict(fields))
        return plugin
    except ValidationError as error:
        allowed = [*field_names(cls), *more]
        lines = listed((_explain(section, details, allowed) for details in error.errors()), error.error_count())
        raise UserError("\n".join([f"{what} is not valid:", *lines])) from error


def fields_as_tree(plugin: object) -> dict[str, Any]:
    """The fields of a plugin as plain values."""
    fields: dict[str, Any] = _adapter(type(plugin)).dump_python(plugin, mode="json")
    return fields


def _adapter(cls: type) -> TypeAdapter[Any]:
    """To make one takes a millisecond or two, and a run asks for some hundred."""
    if cls not in _adapters:
        _adapters[cls] = TypeAdapter(cls)
    return _adapters[cls]


def _explain(section: str, details: Any, allowed: list[str]) -> str:
    key = shorten(".".join([section, *map(str, details["loc"])]))
    if details["type"] == "unexpected_keyword_argument":
        return f"  {key}: unknown key; {suggest(str(details['loc'][-1]), allowed)}"
    got = "" if isinstance(details["input"], Mapping) else f" (got {shown(details['input'])})"
    return f"  {key}: {details['msg'].removeprefix('Value error, ')}{got}"
