"""Clients of a round on one node and on two: seconds, bytes between the nodes, and what a bandwidth takes away.

    sudo python benchmarks/speed/two_nodes.py [--rounds 5] [--clients 8] [--mbit 1000 100]

Needs root (for `ip` and `tc`) and the extra `ray`. The second node is a network namespace of this machine, joined
to it by a pair of virtual interfaces, so that all that passes between the nodes is counted by the kernel. Both
nodes share this machine's cores: two nodes are no faster than one here, and what they are slower is the network.

Every contestant has two workers of one thread: both on the head, or one on each node. They take turns, a round
each. Then the same on two nodes for each bandwidth of `--mbit`, which `tc` (tbf) imposes in both directions.

Every client takes one step of SimCLR on 8 images (32 x 32) with the paper's ViT-Tiny (width 192, depth 12).
Expected between the nodes: the payload once, and an update for each client that trains on the other node.

- head, CPU ms a client: processor time of the process that has the server, all its threads, in a round, over the
  clients: it decodes, checks and adds up the updates.
- idle: bytes between the nodes in a second without a round.
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from time import process_time, sleep

from peers.run import MARK, Running

NODE, HERE, THERE = "fedbench-node", "10.77.0.1", "10.77.0.2"
LINK, OTHER_LINK = "fedbench0", "fedbench1"
COUNTERS = Path("/sys/class/net") / LINK / "statistics"
PORTS = {1: 6401, 2: 6402}  # number of nodes -> of the head
IDLE_S = 10


def ip(*words: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *words], check=True)


@contextmanager
def second_node() -> Iterator[None]:
    """A network namespace, and a link to it."""
    ip("netns", "add", NODE)
    try:
        ip("link", "add", LINK, "type", "veth", "peer", "name", OTHER_LINK, "netns", NODE)
        ip("address", "add", f"{HERE}/24", "dev", LINK)
        ip("link", "set", LINK, "up")
        for words in (["address", "add", f"{THERE}/24", "dev", OTHER_LINK], ["link", "set", OTHER_LINK, "up"]):
            ip("-n", NODE, *words)
        ip("-n", NODE, "link", "set", "lo", "up")
        yield
    finally:
        ip("netns", "delete", NODE)  # its end of the link goes with it, and so does the other


def limit(mbit: int) -> None:
    """Let through so much in each direction."""
    rule = ["root", "tbf", "rate", f"{mbit}mbit", "burst", "1mb", "latency", "100ms"]
    subprocess.run(["tc", "qdisc", "replace", "dev", LINK, *rule], check=True)
    inside = ["ip", "netns", "exec", NODE, "tc", "qdisc", "replace", "dev", OTHER_LINK, *rule]
    subprocess.run(inside, check=True)


def passed() -> tuple[int, int]:
    """Bytes so far to the second node, and from it."""
    return tuple(int((COUNTERS / name).read_text()) for name in ("tx_bytes", "rx_bytes"))


@contextmanager
def raylet(*words: str, inside: bool = False) -> Iterator[None]:
    """A node of a Ray cluster, ended with the block."""
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *words]
    place = ["ip", "netns", "exec", NODE] if inside else []
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([*place, *start], stdout=output, stderr=output)
        try:
            sleep(8)
            if process.poll() is not None:
                output.seek(0)
                raise SystemExit(output.read().decode())
            yield
        finally:
            process.terminate()
            process.wait()


@contextmanager
def cluster(nodes: int) -> Iterator[str]:
    """Its address. It has two cores, on one node or on two."""
    cpus, port = str(2 // nodes), PORTS[nodes]
    store = ["--num-cpus", cpus, "--object-store-memory", "300000000"]
    store += ["--min-worker-port", "0", "--max-worker-port", "0"]  # any: two clusters share this address
    head = ["--head", "--port", str(port), "--node-ip-address", HERE, "--include-dashboard=false", *store]
    with ExitStack() as ends, tempfile.TemporaryDirectory(prefix="rays-", dir="/tmp") as folder:
        ends.enter_context(raylet(*head, "--temp-dir", folder))
        if nodes == 2:
            join = ["--address", f"{HERE}:{port}", "--node-ip-address", THERE]
            ends.enter_context(raylet(*join, *store, inside=True))
        yield f"{HERE}:{port}"


def train(folder: Path, rounds: int, clients: int) -> None:
    """In a process of its own: rounds, each reported, and begun when a line comes."""
    from contextlib import closing

    from small_clients import Small, configure

    from fedbench.federation.experiment import prepare
    from fedbench.federation.federation import Federation

    size = Small(
        8,
        {"name": "simclr", "hidden_dim": 128, "output_dim": 64},
        {"width": 192, "depth": 12, "heads": 3, "patch_size": 4, "image_size": 32, "in_channels": 3},
    )
    config = configure(clients, rounds, folder, size, threads=1, engine="ray", workers=2)
    with closing(Federation(prepare(config), folder / f"clients-{os.getpid()}")) as federation:
        before = process_time()
        for number, record in enumerate(federation.rounds(), 1):
            report = {
                "cpu": process_time() - before,
                "training": sum(one.seconds for one in record.uploads.values()),
                "download": next(iter(record.downloads.values())).num_bytes,
                "upload": next(iter(record.uploads_sent.values())).num_bytes,
            }
            print(MARK + json.dumps(report), flush=True)
            if number < rounds:
                sys.stdin.readline()
            before = process_time()


class Turns:
    """What was measured of a contestant, a value for each turn."""

    def __init__(self, running: Running, clients: int) -> None:
        self.running, self.clients = running, clients
        self.seconds, self.cpu, self.training = list[float](), list[float](), list[float]()
        self.there, self.back = list[int](), list[int]()

    def take(self) -> None:
        """One."""
        before = passed()
        self.running.turn()
        there, back = (now - then for now, then in zip(passed(), before, strict=True))
        self.seconds.append(self.running.seconds[-1])
        self.cpu.append(self.running.report["cpu"])
        self.training.append(self.running.report["training"])
        self.there.append(there)
        self.back.append(back)

    def row(self, name: str) -> str:
        """A line of the table."""
        cells = [
            f"{median(self.seconds):.2f} ({min(self.seconds):.2f} to {max(self.seconds):.2f})",
            f"{median(self.training) / self.clients:.2f}",
            f"{1000 * median(self.cpu) / self.clients:.0f}",
            f"{median(self.there) / 1e6:.1f}",
            f"{median(self.back) / 1e6:.1f} ({min(self.back) / 1e6:.1f} to {max(self.back) / 1e6:.1f})",
        ]
        return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print a table; `--train` is for the processes it starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--mbit", type=int, nargs="*", default=[1000, 100])
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.train:
        train(asked.train, asked.rounds, asked.clients)
        return
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    rounds = 2 + asked.rounds * (1 + len(asked.mbit))
    with ExitStack() as ends:
        folder = ends.enter_context(tempfile.TemporaryDirectory())
        ends.enter_context(second_node())
        running = {}
        for nodes in (1, 2):
            os.environ["RAY_ADDRESS"] = ends.enter_context(cluster(nodes))
            words = ["--rounds", str(rounds), "--clients", str(asked.clients), "--train", folder]
            running[nodes] = Running([sys.executable, str(Path(__file__).absolute()), *words])
            ends.callback(running[nodes].process.kill)
            running[nodes].turn()
            running[nodes].turn()
        before = passed()
        sleep(IDLE_S)
        idle = sum(passed()) - sum(before)
        report = running[2].report
        print(f"payload {report['download'] / 1e6:.1f} MB, update {report['upload'] / 1e6:.1f} MB, ", end="")
        print(f"idle {idle / IDLE_S / 1e3:.0f} kB/s\n")
        print("| | s a round | s a client's training | head, CPU ms a client | MB there | MB back |")
        print("|---|--:|--:|--:|--:|--:|")
        one, two = (Turns(running[nodes], asked.clients) for nodes in (1, 2))
        for _ in range(asked.rounds):
            one.take()
            two.take()
        print(one.row("one node"), two.row("two nodes"), sep="\n", flush=True)
        for mbit in asked.mbit:
            limit(mbit)
            slow = Turns(running[2], asked.clients)
            for _ in range(asked.rounds):
                slow.take()
            print(slow.row(f"two nodes, {mbit} Mbit/s"), flush=True)


if __name__ == "__main__":
    main()
