"""What the steps of a run cost: traced on copies of its own tasks, once for all steps that cost the same."""

from collections.abc import Sequence

from fedbench.config.schema import Config
from fedbench.federation.client import Upload
from fedbench.federation.plan import StagePlan
from fedbench.federation.protocol import Visit
from fedbench.metering.costs import StepCosts
from fedbench.metering.step import StepCost, trace_step
from fedbench.training.local import LocalTask


class RunCosts:
    """Traces a step where none like it was; the task that trains stays as it is."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._known = StepCosts()

    def of_client(self, task: LocalTask, plan: StagePlan, visit: Visit, upload: Upload) -> StepCost:
        """Of a step like those that the client took, wherever that was."""
        key = (visit.stage, "client")
        return self._of(key, task, upload.num_samples, visit.active, plan.passes(visit.active), upload.teachers)

    def of_server(self, task: LocalTask, stage: int, depth: int, num_samples: int) -> StepCost:
        """Of a step of the server, which runs and trains everything that there is."""
        return self._of((stage, "server"), task, num_samples, range(depth), (True,) * depth, ())

    def _of(
        self,
        model: tuple[int, str],
        task: LocalTask,
        num_samples: int,
        active: Sequence[int],
        passes: Sequence[bool],
        teachers: Sequence[str],
    ) -> StepCost:
        encoder, precision = self.config.encoder, self.config.precision
        batch_size = min(self.config.optimizer.batch_size, num_samples)
        shape = (encoder.in_channels, encoder.image_size, encoder.image_size)

        def trace() -> StepCost:
            return trace_step(task, batch_size, shape, precision, active, teachers)

        return self._known.of(model, batch_size, passes, teachers, trace)
