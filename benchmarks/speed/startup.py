"""Start-up: `--help` within 0.5 s, the first local training done within 8 s of the command.

    python benchmarks/speed/startup.py [--repeats 3]

The second is `python -m fedbench run digits`, W&B mirror included, ended as soon as its first client has trained.
"""

import argparse
import subprocess
import sys
import tempfile
from statistics import median
from time import perf_counter

FIRST_CLIENT = """
import os, sys
from fedbench.cli import main
from fedbench.federation import client
fit = client.fit
def once(*arguments):
    fit(*arguments)
    os._exit(0)
client.fit = once
main(["run", "digits", "federation.local_epochs=1", "--out", sys.argv[1]])
sys.exit("nothing was trained")
"""


def seconds(command: list[str], repeats: int) -> float:
    """Median wall time of a command."""
    times = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            start = perf_counter()
            subprocess.run([sys.executable, *command, folder], capture_output=True, check=True)
            times.append(perf_counter() - start)
    return median(times)


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print(f"--help: {seconds(['-m', 'fedbench', '--help'], repeats):.2f} s")
    print(f"first client trained: {seconds(['-c', FIRST_CLIENT], repeats):.1f} s")


if __name__ == "__main__":
    main()
