"""What the loop says of one round, in base units."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from fedbench.federation.client import Upload
from fedbench.federation.participation import Participation
from fedbench.federation.shipment import Entry, Shipment
from fedbench.metering.step import StepCost
from fedbench.training.cuda_memory import CudaMemory, largest

LEDGER_COLUMNS = ("round", "stage", "client", "direction", *Entry._fields)
OF_TRAINING = ("num_samples", "num_steps", "loss", "added_loss", "effective_rank", "seconds")  # of an `Upload`
OF_CUDA = tuple(one.name for one in fields(CudaMemory))


@dataclass
class RoundRecord:
    """Sums over the round's clients, filled while they train.

    Attributes:
        round_index: 0-based over the whole run; `stage` is 1-based.
        participation: who was drawn, who was lost.
        rejected: client -> why its update was not used.
        client_flops: by client, of all that trained, also those that were lost after it.
        downloads, uploads_sent: the payloads of the round, as declared and as counted, by client.
        client_peak_memory_bytes: by client; `memory_source` says how it was found.
        cuda_memory: the allocator's and the driver's figures, by client; empty without a GPU.
        uploads: what is known of each client's training, by client.
        pairwise_l2: mean distance between the clients' updates; None for fewer than two.
        server_step_norm: L2 norm of what the round changed in the server's model, without calibration.
        server_flops: of the server's own training, in `server_steps` steps, and of its edits;
            `server_peak_memory_bytes` of the step or edit that needs most.
        figures: what mechanisms tell of the run so far.
        seconds: wall time by what was done; `training` is summed over the clients.
    """

    round_index: int
    stage: int
    participation: Participation
    rejected: dict[int, str] = field(default_factory=dict)
    downloads: dict[int, Shipment] = field(default_factory=dict)
    uploads_sent: dict[int, Shipment] = field(default_factory=dict)
    client_flops: dict[int, int] = field(default_factory=dict)
    client_peak_memory_bytes: dict[int, int] = field(default_factory=dict)
    memory_source: str = ""
    cuda_memory: dict[int, CudaMemory] = field(default_factory=dict)
    uploads: dict[int, Upload] = field(default_factory=dict)
    pairwise_l2: float | None = None
    server_step_norm: float = 0.0
    server_flops: int = 0
    server_steps: int = 0
    server_peak_memory_bytes: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, client: int, download: Shipment, upload: Upload, cost: StepCost, codec_flops: int = 0) -> None:
        """Count one client's download and training, and what its codecs did."""
        self.downloads[client] = download
        self.client_flops[client] = cost.of_visit(upload.num_steps) + codec_flops
        self.memory_source = "traced live tensors" if upload.memory is None else "CUDA allocator"
        peak = cost.peak_memory_bytes
        if upload.memory is not None:
            self.cuda_memory[client] = upload.memory
            peak = upload.memory.max_allocated_bytes - upload.pool_bytes
        self.client_peak_memory_bytes[client] = peak
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
    def flops(self) -> int:
        """Over all clients that trained, also those that were lost after it."""
        return sum(self.client_flops.values())

    @property
    def peak_memory_bytes(self) -> int:
        """The largest of the round's clients."""
        return max(self.client_peak_memory_bytes.values(), default=0)

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

    def state(self, client: int) -> str:
        """What became of a client that was drawn."""
        if client in self.participation.lost_before:
            return "lost_before"
        if client in self.participation.lost_after:
            return "lost_after"
        return "rejected" if client in self.rejected else "returned"

    def clients(self) -> dict[str, list[Any]]:
        """By column, a row for each client that was drawn; None is what is not known of one that did not train."""
        drawn = self.participation.drawn
        uploads, memory = ([by.get(client) for client in drawn] for by in (self.uploads, self.cuda_memory))
        sent = {"download_bytes": self.downloads, "upload_bytes": self.uploads_sent}
        spent = {"flops": self.client_flops, "peak_memory_bytes": self.client_peak_memory_bytes}
        return {
            "round": [self.round_index] * len(drawn),
            "stage": [self.stage] * len(drawn),
            "client": list(drawn),
            "state": [self.state(client) for client in drawn],
            "reason": [self.rejected.get(client) for client in drawn],
            **{name: [getattr(one, name, None) for one in uploads] for name in OF_TRAINING},
            "worker_deaths": [getattr(one, "deaths", None) for one in uploads],
            **{name: [by[one].num_bytes if one in by else 0 for one in drawn] for name, by in sent.items()},
            **{name: [by.get(one) for one in drawn] for name, by in spent.items()},
            **{f"cuda_{name}": [getattr(one, name, None) for one in memory] for name in OF_CUDA},
        }

    def mean(self, figure: str) -> float | None:
        """Mean of a figure over the clients that trained, weighted by samples; None if nobody did."""
        samples = sum(upload.num_samples for upload in self.uploads.values())
        terms = (getattr(upload, figure) * upload.num_samples for upload in self.uploads.values())
        return sum(terms) / samples if samples else None

    def to_dict(self) -> dict[str, object]:
        """Of the round as a whole, under flat keys that say whose and what, for files and for W&B.

        It is as long for 10,000 clients as for two; of each of them `clients` tells.
        """
        losses = [upload.loss for upload in self.uploads.values()]
        return {
            "round": self.round_index,
            "stage": self.stage,
            "num_participants": len(self.participation.drawn),
            "num_returned": len(self.returned),
            "num_lost": self.num_lost,
            "num_lost_before": len(self.participation.lost_before),
            "num_lost_after": len(self.participation.lost_after),
            "num_rejected": len(self.rejected),
            "train/loss": self.mean("loss"),
            "train/added_loss": self.mean("added_loss"),
            "train/min_loss": float(np.min(losses)) if losses else None,  # NaN if one of them is, as the mean
            "train/max_loss": float(np.max(losses)) if losses else None,
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
            "workers/num_deaths": sum(upload.deaths for upload in self.uploads.values()),
            "client/peak_memory_bytes": self.peak_memory_bytes,
            "client/memory_source": self.memory_source,
            **{f"client/{key}": value for key, value in largest(self.cuda_memory.values()).items()},
            **self.figures,
            **{f"seconds/{part}": value for part, value in self.seconds.items()},
        }
