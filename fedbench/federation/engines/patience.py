"""How long an engine waits for a worker."""

from __future__ import annotations

from functools import cached_property

from fedbench.federation.experiment import Experiment
from fedbench.federation.protocol import Visit
from fedbench.metering.forward import forward_macs
from fedbench.training.local import num_steps

PATIENCE_S = 600.0  # that a worker may take besides training: it imports, decodes, waits for a disk
SLOWER = 20.0  # than any visit so far, for each FLOP
SLOWEST = 1e-9  # seconds for a FLOP, where nothing was seen yet
PASSES = 2 * 2 * 2 * 3  # FLOPs of a MAC, views, branches, forward and backward: about, for nothing is traced


class Patience:
    """How long a worker has for a client: as configured, or far longer than its cost and the past predict.

    The cost is that of so many images in an encoder of full depth. It is rough, but no code of a plugin is run for
    it: that may be what kills a worker.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._slowest = 0.0  # seconds for a FLOP

    def of(self, visit: Visit) -> float:
        """Seconds."""
        fixed = self.experiment.config.federation.timeout
        return fixed or PATIENCE_S + SLOWER * (self._slowest or SLOWEST) * self._flops(visit)

    def saw(self, visit: Visit, seconds: float) -> None:
        """A visit that took so long."""
        self._slowest = max(self._slowest, seconds / self._flops(visit))

    def _flops(self, visit: Visit) -> int:
        config, count = self.experiment.config, len(self.experiment.client_indices[visit.client])
        batch_size = config.optimizer.batch_size
        images = num_steps(count, batch_size, config.federation.local_epochs) * min(batch_size, count)
        return PASSES * images * self._macs

    @cached_property
    def _macs(self) -> int:
        return max(forward_macs(self.experiment.config.encoder).values())
