"""What the loop says of one round, in base units."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fedbench.federation.client import Upload
from fedbench.federation.participation import Participation
from fedbench.federation.shipment import Entry, Shipment
from fedbench.metering.step import StepCost
from fedbench.training.cuda_memory import CudaMemory, largest

LEDGER_COLUMNS = ("round", "stage", "client", "direction", *Entry._fields)


@dataclass
class RoundRecord:
    """Sums over the round's clients, filled while they train.

    Attributes:
        round_index: 0-based over the whole run; `stage` is 1-based.
        participation: who was drawn, who was lost.
        rejected: client -> why its update was not used.
        flops: over all clients that trained, also those that were lost after it.
        downloads, uploads_sent: the payloads of the round, as declared and as counted, by client.
        peak_memory_bytes: the largest of the round's clients; `memory_source` says how it was found.
        cuda_memory: the allocator's and the driver's figures, by client; empty without a GPU.
        uploads: what is known of each client's training, by client.
        pairwise_l2: mean distance between the clients' updates; None for fewer than two.
        server_step_norm: L2 norm of what the round changed in the server's model, without calibration.
        server_flops: of the server's own training, in `server_steps` steps, and of its edits;
            `server_peak_memory_bytes` of the step or edit that needs most.
        seconds: wall time by what was done; `training` is summed over the clients.
    """

    round_index: int
    stage: int
    participation: Participation
    rejected: dict[int, str] = field(default_factory=dict)
    downloads: dict[int, Shipment] = field(default_factory=dict)
    uploads_sent: dict[int, Shipment] = field(default_factory=dict)
    flops: int = 0
    peak_memory_bytes: int = 0
    memory_source: str = ""
    cuda_memory: dict[int, CudaMemory] = field(default_factory=dict)
    uploads: dict[int, Upload] = field(default_factory=dict)
    pairwise_l2: float | None = None
    server_step_norm: float = 0.0
    server_flops: int = 0
    server_steps: int = 0
    server_peak_memory_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, client: int, download: Shipment, upload: Upload, cost: StepCost) -> None:
        """Count one client's download and training."""
        self.downloads[client] = download
        self.flops += cost.of_visit(upload.num_steps)
        self.memory_source = "traced live tensors" if upload.memory is None else "CUDA allocator"
        peak = cost.peak_memory_bytes
        if upload.memory is not None:
            self.cuda_memory[client] = upload.memory
            peak = upload.memory.max_allocated_bytes - upload.pool_bytes
        self.peak_memory_bytes = max(self.peak_memory_bytes, peak)
        self.uploads[client] = replace(upload, data=b"")  # 100 clients' updates are not kept in memory
        self.seconds["training"] = self.seconds.get("training", 0.0) + upload.seconds

    def add_server(self, num_steps: int, costs: Sequence[tuple[StepCost, int]]) -> None:
        """Count what a mechanism did on the server: `num_steps` of training; what cost how much, and how often."""
        self.server_steps += num_steps
        for cost, times in costs:
            self.server_flops += cost.flops * times
            self.server_peak_memory_bytes = max(self.server_peak_memory_bytes, cost.peak_memory_bytes)

    def add_upload(self, client: int, upload: Shipment) -> None:
        """Count what a client sent back, whether it will be used or not."""
        self.uploads_sent[client] = upload

    @property
    def download_bytes(self) -> int:
        """Over all clients that were sent something."""
        return sum(shipment.num_bytes for shipment in self.downloads.values())

    @property
    def upload_bytes(self) -> int:
        """Over all clients that sent something."""
        return sum(shipment.num_bytes for shipment in self.uploads_sent.values())

    @property
    def catch_up_bytes(self) -> int:
        """The part of the downloads that other clients had a round ago or longer."""
        return sum(shipment.because("catch_up") for shipment in self.downloads.values())

    @property
    def hand_over_bytes(self) -> int:
        """The part of the downloads that delivers a finished block ([LW] Algorithm 1, line 14)."""
        return sum(shipment.because("hand_over") for shipment in self.downloads.values())

    @property
    def shipments(self) -> list[Shipment]:
        """Everything that travelled."""
        return [*self.downloads.values(), *self.uploads_sent.values()]

    def ledger(self) -> list[tuple[object, ...]]:
        """Lines of the byte ledger (`LEDGER_COLUMNS`): per client, direction, tensor group and type."""
        directions = (("download", self.downloads), ("upload", self.uploads_sent))
        return [
            (self.round_index, self.stage, client, direction, *entry)
            for direction, shipments in directions
            for client, shipment in shipments.items()
            for entry in shipment.entries
        ]

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
            "server/steps": self.server_steps,
            "server/peak_memory_bytes": self.server_peak_memory_bytes,
            "all_clients/download_bytes": self.download_bytes,
            "all_clients/catch_up_bytes": self.catch_up_bytes,
            "all_clients/hand_over_bytes": self.hand_over_bytes,
            "all_clients/upload_bytes": self.upload_bytes,
            "all_clients/framing_bytes": sum(shipment.framing_bytes for shipment in self.shipments),
            "all_clients/buffer_bytes": sum(shipment.buffer_bytes for shipment in self.shipments),
            "all_clients/flops": self.flops,
            "all_clients/local_steps": sum(upload.num_steps for upload in self.uploads.values()),
            "workers/deaths": {str(client): one.deaths for client, one in self.uploads.items() if one.deaths},
            "client/peak_memory_bytes": self.peak_memory_bytes,
            "client/memory_source": self.memory_source,
            **{f"client/{key}": value for key, value in largest(self.cuda_memory.values()).items()},
            **{f"seconds/{part}": value for part, value in self.seconds.items()},
        }
