"""Start-up: `--help` within 0.5 s, the first training step done within 8 s of the command.

    python benchmarks/speed/startup.py [--repeats 3]

The second is `python -m fedbench run digits`, W&B mirror included, ended as soon as its first client has taken
a step.
"""

import argparse
import subprocess
import sys
import tempfile
from signal import SIGKILL
from statistics import median
from time import perf_counter

FIRST_STEP = """
import os, sys
from torch._subclasses.fake_tensor import FakeTensor
from fedbench.cli import main
from fedbench.ssl import SSLMethod
def stop(self):
    if not isinstance(next(self.parameters()), FakeTensor):  # the dry run takes steps too
        os.kill(os.getpid(), 9)
SSLMethod.update_target = stop
main(["run", "digits", "--out", sys.argv[1]])
sys.exit("nothing was trained")
"""


def seconds(command: list[str], repeats: int) -> float:
    """Median wall time of a command."""
    times = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            start = perf_counter()
            done = subprocess.run([sys.executable, *command, folder], capture_output=True, text=True)
            times.append(perf_counter() - start)
            if done.returncode not in (0, -SIGKILL):
                raise SystemExit(done.stderr)
    return median(times)


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print(f"--help: {seconds(['-m', 'fedbench', '--help'], repeats):.2f} s")
    print(f"first step: {seconds(['-c', FIRST_STEP], repeats):.1f} s")


if __name__ == "__main__":
    main()
