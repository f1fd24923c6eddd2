"""What an update costs the server: decode, check, add up. The head of many workers takes one after the other.

    python benchmarks/speed/reduction.py [--updates 40]

Updates of the paper's ViT-Tiny with SimCLR's heads, of all of it (FedSSL) and of one block and the heads
(LW-FedSSL), on one thread. Printed are MB and milliseconds an update: median and range, wall time.
"""

import argparse
from collections.abc import Iterator
from itertools import pairwise
from statistics import median
from time import perf_counter

import torch

from fedbench.config import load_config
from fedbench.encoders.tensor_groups import HEADS, groups_of, select
from fedbench.federation.dispatch import Dispatch
from fedbench.federation.payload import encode
from fedbench.federation.server import Server
from fedbench.federation.strategy import ClientUpdate, weighted_mean
from fedbench.training.model import build_model

TREE = {
    "ssl": {"name": "simclr", "hidden_dim": 128, "output_dim": 64},
    "encoder": {"width": 192, "depth": 12, "heads": 3, "patch_size": 4, "image_size": 32, "in_channels": 3},
}


def measure(server: Server, data: bytes, count: int) -> list[float]:
    """Milliseconds of each of `count` updates."""
    ends = [perf_counter()]

    def updates() -> Iterator[ClientUpdate]:
        for client in range(count + 2):
            state, _, num_bytes = server.accept(data)
            assert num_bytes == len(data)
            yield ClientUpdate(client, 10 + client, state)
            ends.append(perf_counter())  # it has been added

    weighted_mean(updates())
    return [1000 * (end - begin) for begin, end in pairwise(ends[2:])]  # two warm up


def main() -> None:
    """Print a line for each kind of update."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=40)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(TREE)
    server = Server(Dispatch(1))
    server.state = build_model(config, config.encoder.depth).online_state()
    for name, groups in (("all", groups_of(server.state)), ("one block", ["block_12", HEADS])):
        data = encode(select(server.state, groups))
        times = measure(server, data, asked.updates)
        print(f"{name}: {len(data) / 1e6:.2f} MB, {median(times):.1f} ms ({min(times):.1f} to {max(times):.1f})")


if __name__ == "__main__":
    main()
