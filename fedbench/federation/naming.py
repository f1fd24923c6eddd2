"""What a strategy is, however it was written: its whole configuration, and the name that tables give it."""

from collections.abc import Mapping
from typing import Any

from fedbench.config.load import UNTRAINED, Tree, flat, read_yaml, resolve_file
from fedbench.config.schema import Config
from fedbench.errors import UserError
from fedbench.federation.strategy import active_mechanisms, load_strategy
from fedbench.files import config_names
from fedbench.plugin_fields import fields_as_tree
from fedbench.plugins import short_name

MISSING = object()


def whole(strategy: Mapping[str, Any]) -> Tree:
    """The section `strategy` with every default filled in, as plain values; mechanisms that are off are left out.

    Raises:
        UserError: as `load_strategy` does.
    """
    own = fields_as_tree(load_strategy(strategy))
    mechanisms = {name: fields_as_tree(one) for name, one in active_mechanisms(strategy).items()}
    return {"name": strategy["name"], **own, **mechanisms}


def presets_of(name: str) -> dict[str, Tree]:
    """Preset -> its section `strategy`, of the strategy called `name`."""
    found = {preset: read_yaml(resolve_file(preset, "strategies")) for preset in config_names("strategies")}
    return {preset: tree for preset, tree in found.items() if tree["name"] == name}


def strategy_label(config: Config) -> str:
    """The nearest preset, or the strategy's name, and what differs from it: `lw_fedssl@v3(calibration.epochs=3)`.

    It follows from what the strategy does: two ways to write the same have one label. Where nothing is trained it
    is `untrained`: there strategy and SSL method make no difference.
    """
    if config.federation.rounds == 0:
        return UNTRAINED
    own = whole(config.strategy)
    name = own["name"]
    known = presets_of(name) or {short_name(name): {"name": name}}
    changes = {shown: _changes(own, tree) for shown, tree in sorted(known.items())}
    nearest = min(changes, key=lambda shown: len({key.partition(".")[0] for key in changes[shown]}))
    changed = ", ".join(f"{short_name(key)}={value}" for key, value in changes[nearest].items())
    return f"{nearest}({changed})" if changed else nearest


def _changes(own: Tree, known: Tree) -> Tree:
    """Dotted keys in which a whole strategy differs from another one; None stands for a mechanism that is off."""
    base = whole(known)
    added = [key for key in own if key not in base]
    base |= {key: _defaults(known, key) for key in added}
    one, other = flat(own), flat(base)
    changes = {key: value for key, value in one.items() if other.get(key, MISSING) != value}
    changes |= {key: True for key in added if not any(_within(changed, key) for changed in changes)}
    return changes | {key: None for key in base if key not in own}


def _within(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def _defaults(known: Tree, mechanism: str) -> Tree:
    """A mechanism's fields as they are unless they are set; none where one of them must be set."""
    try:
        return fields_as_tree(active_mechanisms({**known, mechanism: True})[mechanism])
    except UserError:
        return {}
