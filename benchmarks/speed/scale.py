"""10,000 registered clients cost the server less than 50 MB more than 10, and a round no more time.

    python benchmarks/speed/scale.py [--rounds 6]

Each configuration runs in a process of its own: LW-FedSSL on random 8 x 8 images, one step of 8 images a client.
Printed are the peak of resident memory, and what a round takes beside the clients' training.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

REGISTERED = ((10, 10), (100, 10), (10_000, 10), (100, 100), (10_000, 100))
SAMPLES = 8


def measure(registered: int, participants: int, rounds: int) -> dict[str, float]:
    """Run one configuration in this process."""
    import resource

    import numpy as np
    import torch

    from fedbench.config import load_config
    from fedbench.federation.experiment import prepare
    from fedbench.federation.federation import Federation

    total = SAMPLES * max(size for size, _ in REGISTERED)  # the same data whatever the number of clients
    with tempfile.TemporaryDirectory() as folder:
        draw = np.random.default_rng(0)
        images = draw.integers(0, 256, (total, 8, 8, 1), dtype=np.uint8)
        labels = np.arange(total) % 4
        tests = {"test_images": images[:8], "test_labels": labels[:8]}
        np.savez(Path(folder) / "images.npz", images=images, labels=labels, **tests)
        tree = {
            "strategy": "lw_fedssl@v4",
            "encoder": {"width": 48, "depth": 2, "heads": 3, "patch_size": 4},
            "data": {"name": "npz", "path": f"{folder}/images.npz", "num_train": SAMPLES * registered},
            "federation": {
                "num_clients": registered,
                "participants": participants,
                "rounds": rounds,
                "local_epochs": 1,
            },
            "optimizer": {"batch_size": SAMPLES},
            "accelerator": "cpu",
            "threads": 1,
        }
        torch.set_num_threads(1)
        federation = Federation(prepare(load_config(tree)), Path(folder))
        seconds = [record.seconds for record in federation.rounds()]
    beside = [one["round"] - one["training"] for one in seconds[2:]]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak_mib": peak, "round_ms": 1000 * median(beside), "client_ms": 1000 * median(beside) / participants}


def main() -> None:
    """Print a line for each configuration; `--one N P` is for the processes it starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(*asked.one, asked.rounds)))
        return
    print("| registered | participants | peak MiB | beside training, ms a round | ms a participant |")
    print("|--:|--:|--:|--:|--:|")
    for registered, participants in REGISTERED:
        command = [
            sys.executable,
            __file__,
            "--rounds",
            str(asked.rounds),
            "--one",
            str(registered),
            str(participants),
        ]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(
            f"| {registered:,} | {participants} | {found['peak_mib']:.0f} | {found['round_ms']:.0f} "
            f"| {found['client_ms']:.1f} |"
        )


if __name__ == "__main__":
    main()
