"""Every client's losses in the first rounds, for every strategy and SSL method, with portable kernels.

    python tests/golden_losses.py            # print them as JSON
    python tests/golden_losses.py --write    # ... into tests/golden_losses.json (`make golden`)

A loss is the mean over a client's local steps, as a hexadecimal float: equal text is equal bits. What lies before
it is in it: initial values, partition, views, the loss and its gradient, AdamW, aggregation, calibration.
"""

import json
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from ssl_methods import needed
from tiny_config import TINY

from fedbench.config import Config, load_config
from fedbench.numerics import EnvironmentNeededError, require, restart, settle

FILE = Path(__file__).with_suffix(".json")
STRATEGIES = ("fedssl", "prog_fedssl", "lw_fedssl@v3", "lw_fedssl@v4")
SSL_METHODS = ("moco_v3", "byol", "simclr")
# with one strategy that grows; vicreg, gated_vicreg and mae take roots, of which processors differ in the last bit
FURTHER = ("simsiam", "barlow_twins", "moco_v2", "dino", "swav", "clip")
LIBRARIES = ("torch", "torchvision", "lightly", "lightning", "timm", "numpy", "scikit-learn")  # that reach a loss


def config(strategy: str, ssl: str) -> Config:
    """The tiny configuration, of whose three rounds each is a stage of a strategy that grows."""
    own = {"strategy": strategy, "ssl": ssl, "federation": {"rounds": 3}, "numerics": "portable"}
    return load_config(TINY, needed(ssl), own)


def losses(config: Config) -> list[list[str]]:
    """One list a round, one loss a client."""
    from fedbench.federation.experiment import prepare
    from fedbench.federation.federation import Federation

    settle(config)
    with tempfile.TemporaryDirectory() as folder:
        rounds = list(Federation(prepare(config), Path(folder)).rounds())
    return [[upload.loss.hex() for upload in record.uploads.values()] for record in rounds]


def golden() -> dict[str, Any]:
    """The libraries, and the losses of each pair."""
    pairs = [(strategy, ssl) for strategy in STRATEGIES for ssl in SSL_METHODS]
    pairs += [("lw_fedssl@v4", ssl) for ssl in FURTHER]
    return {
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
        "losses": {f"{strategy} {ssl}": losses(config(strategy, ssl)) for strategy, ssl in pairs},
    }


if __name__ == "__main__":
    try:
        require(config(STRATEGIES[0], SSL_METHODS[0]))
    except EnvironmentNeededError:
        restart()
    text = json.dumps(golden(), indent=1) + "\n"
    if sys.argv[1:] == ["--write"]:
        FILE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
