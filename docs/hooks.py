"""What the site adds to the pages: generated references, and links that leave `docs/` lead to the repository."""

import inspect
import re
from typing import Any

import fedbench
from fedbench.config.keys import config_keys

KEYS, API = "<!-- keys -->", "<!-- api -->"


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Called by mkdocs for every page."""
    repository = config["repo_url"].rstrip("/")
    markdown = re.sub(r"\]\(\.\./([^)]+)\)", rf"]({repository}/blob/main/\1)", markdown)
    return markdown.replace(KEYS, keys_table()).replace(API, api_sections())


def keys_table() -> str:
    """Every key of a configuration, read from the schema."""
    lines = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    for key in config_keys():
        cells = (f"`{key.name}`", f"`{key.default}`" if key.default else "", key.allowed, key.meaning)
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines)


def api_sections() -> str:
    """The functions and classes of `fedbench`, with their docstrings."""
    return "\n\n".join(map(_section, fedbench.__all__))


def _section(name: str) -> str:
    thing = getattr(fedbench, name)
    own = [(name, thing)]
    if inspect.isclass(thing):
        members = vars(thing).items()
        own += [(f"{name}.{key}", getattr(one, "fget", None) or getattr(one, "func", one)) for key, one in members]
    shown = [(called, one) for called, one in own if inspect.getdoc(one) and "._" not in called]
    return "\n\n".join(f"{'##' if one is thing else '###'} `{called}`\n\n{_body(one)}" for called, one in shown)


def _body(thing: Any) -> str:
    signature = f"```text\n{inspect.signature(thing)}\n```\n\n" if inspect.isfunction(thing) else ""
    return f"{signature}```text\n{inspect.getdoc(thing)}\n```"
