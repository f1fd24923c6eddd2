"""What a visit costs a worker, known before it: for the order of visits, and for how long an engine waits."""

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


class Effort:
    """In passes of images through a block, forward once, backward as twice forward.

    Rough, but no code of a plugin is run for it.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    def of(self, visit: Visit) -> float:
        """Images times blocks that run, those under training three times."""
        return self.images(visit) * sum(3 if trained else 1 for trained in visit.plan.passes)

    def images(self, visit: Visit) -> int:
        """That go through the encoder in one view."""
        config, count = self.experiment.config, len(self.experiment.client_indices[visit.client])
        batch_size = config.optimizer.batch_size
        return num_steps(count, batch_size, config.federation.local_epochs) * min(batch_size, count)


class Patience:
    """How long a worker has for a client: as configured, or far longer than its cost and the past predict.

    The cost is that of so many images in an encoder of full depth: what a plugin plans may be what kills a worker.
    """

    def __init__(self, effort: Effort) -> None:
        self.effort, self.config = effort, effort.experiment.config
        self._slowest = 0.0  # seconds for a FLOP

    def of(self, visit: Visit) -> float:
        """Seconds."""
        fixed = self.config.federation.timeout
        return fixed or PATIENCE_S + SLOWER * (self._slowest or SLOWEST) * self._flops(visit)

    def saw(self, visit: Visit, seconds: float) -> None:
        """A visit that took so long."""
        self._slowest = max(self._slowest, seconds / self._flops(visit))

    def _flops(self, visit: Visit) -> int:
        return PASSES * self.effort.images(visit) * self._macs

    @cached_property
    def _macs(self) -> int:
        return max(forward_macs(self.config.encoder).values())
