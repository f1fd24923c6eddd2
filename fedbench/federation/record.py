"""What the loop says of one round, in base units."""

from dataclasses import dataclass, field

from fedbench.federation.client import Upload
from fedbench.federation.participation import Participation
from fedbench.federation.server import Download
from fedbench.metering import StepCost


@dataclass
class RoundRecord:
    """Sums over the round's clients, filled while they train.

    Attributes:
        round_index: 0-based over the whole run; `stage` is 1-based.
        participation: who was drawn, who was lost.
        rejected: client -> why its update was not used.
        download_bytes, upload_bytes, flops: over all clients that trained, also those that were lost after it.
        catch_up_bytes: the part of the downloads that other clients had a round ago or longer.
        peak_memory_bytes: the largest of the round's clients; `memory_source` says how it was found.
        uploads: what is known of each client's training, by client.
        pairwise_l2: mean distance between the clients' updates; None for fewer than two.
        server_step_norm: L2 norm of what the round changed in the server's model, without calibration.
        server_flops: of the server's own training.
        seconds: wall time by what was done.
    """

    round_index: int
    stage: int
    participation: Participation
    rejected: dict[int, str] = field(default_factory=dict)
    download_bytes: int = 0
    catch_up_bytes: int = 0
    upload_bytes: int = 0
    flops: int = 0
    peak_memory_bytes: int = 0
    memory_source: str = ""
    uploads: dict[int, Upload] = field(default_factory=dict)
    pairwise_l2: float | None = None
    server_step_norm: float = 0.0
    server_flops: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, client: int, download: Download, upload: Upload, cost: StepCost) -> None:
        """Count one client's visit."""
        self.download_bytes += len(download.data)
        self.catch_up_bytes += download.catch_up_bytes
        self.flops += cost.flops * upload.num_steps
        measured = upload.peak_memory_bytes
        self.memory_source = "traced live tensors" if measured is None else "CUDA allocator"
        peak = cost.peak_memory_bytes if measured is None else measured
        self.peak_memory_bytes = max(self.peak_memory_bytes, peak)
        self.uploads[client] = upload

    @property
    def returned(self) -> list[int]:
        """Clients whose update was used."""
        lost = self.participation.lost_before | self.participation.lost_after | self.rejected.keys()
        return [client for client in self.participation.drawn if client not in lost]

    @property
    def num_lost(self) -> int:
        """Clients that were drawn and lost on the way."""
        return len(self.participation.lost_before | self.participation.lost_after)

    def mean(self, figure: str) -> float | None:
        """Mean of a figure over the clients that trained, weighted by samples; None if nobody did."""
        samples = sum(upload.num_samples for upload in self.uploads.values())
        terms = (getattr(upload, figure) * upload.num_samples for upload in self.uploads.values())
        return sum(terms) / samples if samples else None

    def to_dict(self) -> dict[str, object]:
        """Flat keys that say whose and what, for files and for W&B."""
        return {
            "round": self.round_index,
            "stage": self.stage,
            "participants": list(self.participation.drawn),
            "returned": self.returned,
            "lost_before": sorted(self.participation.lost_before),
            "lost_after": sorted(self.participation.lost_after),
            "rejected": {str(client): reason for client, reason in self.rejected.items()},
            "num_returned": len(self.returned),
            "num_lost": self.num_lost,
            "num_rejected": len(self.rejected),
            "train/loss": self.mean("loss"),
            "train/added_loss": self.mean("added_loss"),
            "train/losses": {str(client): upload.loss for client, upload in self.uploads.items()},
            "train/effective_rank": self.mean("effective_rank"),
            "updates/pairwise_l2": self.pairwise_l2,
            "server/step_norm": self.server_step_norm,
            "server/flops": self.server_flops,
            "all_clients/download_bytes": self.download_bytes,
            "all_clients/catch_up_bytes": self.catch_up_bytes,
            "all_clients/upload_bytes": self.upload_bytes,
            "all_clients/flops": self.flops,
            "client/peak_memory_bytes": self.peak_memory_bytes,
            **{f"seconds/{part}": value for part, value in self.seconds.items()},
        }
