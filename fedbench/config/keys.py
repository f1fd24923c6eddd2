"""Every key with what it allows, its default and its meaning, read from a JSON schema; the schema for editors.

The schema of the configuration is pydantic's own, and so is that of a plugin's dataclass: one reader serves both.
"""

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from fedbench.config.schema import Config
from fedbench.errors import UserError

Tree = dict[str, Any]
BY_NAME = ("strategy", "ssl", "encoder", "data")  # sections for which a name alone may stand
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


class Key(NamedTuple):
    """A key of a configuration.

    Attributes:
        name: dotted.
        allowed: its type and bounds, or its values, in words.
        default: as YAML; "" where it must be given.
    """

    name: str
    allowed: str
    default: str
    meaning: str

    def __str__(self) -> str:
        default = f" = {self.default}" if self.default else ""
        meaning = textwrap.fill(self.meaning, 76, initial_indent="    ", subsequent_indent="    ")
        return f"{self.name}{default}  ({self.allowed})" + (f"\n{meaning}" if self.meaning else "")


def config_keys(prefix: str = "") -> list[Key]:
    """The keys of a configuration, in the order of the schema; those of one section, or one of them, by `prefix`.

    Raises:
        UserError: no key is called so.
    """
    keys = list(schema_keys(Config.model_json_schema()))
    found = [key for key in keys if not prefix or f"{key.name}.".startswith(f"{prefix}.")]
    if not found:
        from fedbench.errors import suggest

        sections = dict.fromkeys(key.name.partition(".")[0] for key in keys)
        raise UserError(f"keys: {prefix!r} is no key; {suggest(prefix, sections)}, and the keys in them")
    return found


def schema_keys(schema: Mapping[str, Any], prefix: str = "") -> Iterator[Key]:
    """The keys of a JSON schema of an object; sections in it are walked through."""
    yield from _walk(schema, schema.get("$defs", {}), prefix)


def _walk(schema: Mapping[str, Any], definitions: Tree, prefix: str) -> Iterator[Key]:
    for name, field in schema.get("properties", {}).items():
        options = [_resolved(one, definitions) for one in field.get("anyOf", [field])]
        sections = [one for one in options if "properties" in one]
        if sections and not any(one.get("type") == "null" for one in options):
            yield from _walk(sections[0], definitions, f"{prefix}{name}.")
            continue
        allowed = " | ".join(_words(one) for one in options)
        default = json.dumps(field["default"]) if "default" in field else ""
        yield Key(f"{prefix}{name}", allowed, default, " ".join(field.get("description", "").split()))


def _resolved(field: Tree, definitions: Tree) -> Tree:
    reference = field.get("$ref", "").rpartition("/")[2]
    return definitions[reference] if reference else field


def _words(field: Tree) -> str:
    """What a JSON schema allows: `integer from 1 to 64`, `"vit" | "resnet18"`."""
    if "const" in field or "enum" in field:
        return " | ".join(map(str, field.get("enum", [field.get("const")])))
    if "prefixItems" in field:
        return f"[{', '.join(map(_words, field['prefixItems']))}]"
    kind = str(field.get("type", "anything"))
    if kind == "array":
        return f"list of {_words(field.get('items', {}))}"
    if kind == "object":
        return f"mapping, as section {field['title']}" if "properties" in field else "mapping"
    words = {"string": "text", "boolean": "true | false"}.get(kind, kind)
    if kind == "integer" and "exclusiveMinimum" in field:
        field = {**field, "minimum": field["exclusiveMinimum"] + 1}
        del field["exclusiveMinimum"]
    if "minimum" in field and "maximum" in field:
        return f"{words} from {field['minimum']:,} to {field['maximum']:,}"
    return " ".join([words, *(f"{sign} {field[bound]}" for bound, sign in BOUNDS.items() if bound in field)])


def config_schema() -> Tree:
    """JSON schema of a configuration file, for editors; where a name may stand for a section, it allows one."""
    schema = Config.model_json_schema()
    for name in BY_NAME:
        section = schema["properties"][name]
        description = {"description": section.pop("description")}
        schema["properties"][name] = {**description, "anyOf": [{"type": "string"}, section]}
    schema["$defs"]["EvaluationConfig"]["properties"]["data"]["anyOf"].append({"type": "string"})
    return schema


def grid_schema() -> Tree:
    """JSON schema of a grid file: `base` and `cells` are parts of configurations."""
    from fedbench.config.grid import Grid

    schema, part = Grid.model_json_schema(), config_schema()
    definitions = part.pop("$defs")
    schema["$defs"] = {**schema.get("$defs", {}), **definitions, "Config": part}
    reference = {"$ref": "#/$defs/Config"}
    schema["properties"]["base"] = reference
    schema["properties"]["cells"] = {"type": "array", "items": reference}
    return schema
