"""What the loop says of one round, in base units."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from fedbench.federation.client import Upload
from fedbench.federation.server import Download
from fedbench.metering import StepCost


@dataclass
class RoundRecord:
    """Sums over the round's clients, filled while they train.

    Attributes:
        round_index: 0-based over the whole run; `stage` is 1-based.
        participants: clients that were drawn.
        download_bytes, upload_bytes, flops: over all clients of the round.
        peak_memory_bytes: the largest of the round's clients; `memory_source` says how it was found.
        loss: mean over clients of their mean local loss, weighted by samples.
        seconds: wall time by what was done: training, communication, server.
    """

    round_index: int
    stage: int
    participants: Sequence[int]
    download_bytes: int = 0
    upload_bytes: int = 0
    flops: int = 0
    peak_memory_bytes: int = 0
    memory_source: str = ""
    num_samples: int = 0
    loss: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, download: Download, upload: Upload, cost: StepCost) -> None:
        """Count one client's visit."""
        self.download_bytes += len(download.data)
        self.upload_bytes += len(upload.data)
        self.flops += cost.flops * upload.num_steps
        measured = upload.peak_memory_bytes
        self.memory_source = "traced live tensors" if measured is None else "CUDA allocator"
        peak = cost.peak_memory_bytes if measured is None else measured
        self.peak_memory_bytes = max(self.peak_memory_bytes, peak)
        self.num_samples += upload.num_samples
        self.loss += (upload.loss - self.loss) * upload.num_samples / self.num_samples

    def to_dict(self) -> dict[str, object]:
        """Flat keys that say whose and what, for files and for W&B."""
        return {
            "round": self.round_index,
            "stage": self.stage,
            "participants": list(self.participants),
            "train/loss": self.loss,
            "all_clients/download_bytes": self.download_bytes,
            "all_clients/upload_bytes": self.upload_bytes,
            "all_clients/flops": self.flops,
            "client/peak_memory_bytes": self.peak_memory_bytes,
            **{f"seconds/{part}": value for part, value in self.seconds.items()},
        }
