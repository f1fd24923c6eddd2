"""fedbench: a benchmark harness for federated self-supervised learning.

From Python, stable by promise (a name or an argument that changes is deprecated for one release first):

    import fedbench

    result = fedbench.run("digits", strategy="lw_fedssl@v3", seed=1)    # what `fedbench run` does, or did already
    result.top1, result.summary["client/flops"], result.encoder()
    for line in fedbench.federate("digits", federation={"rounds": 8}):  # round by round
        print(line["round"], line["train/loss"])
    fedbench.profile("digits").peak_memory_bytes                        # before any training
    fedbench.results("runs").to_pandas()                                # the leaderboard's rows
    fedbench.load_encoder("runs/RUN")(images)                           # (B, C, H, W) -> (B, feature_dim)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedbench.errors import UserError

if TYPE_CHECKING:
    from fedbench.api import Result, Results, federate, load_encoder, profile, results, run

__all__ = ["Result", "Results", "UserError", "federate", "load_encoder", "profile", "results", "run"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The functions import torch, so they are fetched when they are asked for."""
    if name in __all__:
        return getattr(import_module("fedbench.api"), name)
    raise AttributeError(f"module 'fedbench' has no attribute {name!r}")
