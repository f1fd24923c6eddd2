"""What the steps of a run cost: traced on copies of its own tasks, once for all steps that cost the same."""

from fedbench.config.schema import Config
from fedbench.federation.client import Upload
from fedbench.federation.plan import StagePlan
from fedbench.federation.protocol import Visit
from fedbench.metering.costs import StepCosts
from fedbench.metering.step import StepCost, trace_step
from fedbench.training.local import LocalTask
from fedbench.training.visit import NOTHING_KEPT, KeptBefore, handed


class RunCosts:
    """Traces a step where none like it was; the task that trains stays as it is."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._known = StepCosts()

    def of_client(self, task: LocalTask, visit: Visit, upload: Upload) -> StepCost:
        """Of a step like those that the client took, wherever that was."""
        return self._of((visit.stage, "client"), task, visit.plan, upload.num_samples, upload.kept)

    def of_server(self, task: LocalTask, stage: int, depth: int, num_samples: int) -> StepCost:
        """Of a step of the server, which runs and trains everything that there is."""
        return self._of((stage, "server"), task, StagePlan.end_to_end(depth), num_samples, NOTHING_KEPT)

    def _of(
        self, model: tuple[int, str], task: LocalTask, plan: StagePlan, num_samples: int, before: KeptBefore
    ) -> StepCost:
        encoder, precision = self.config.encoder, self.config.precision
        batch_size = min(self.config.optimizer.batch_size, num_samples)
        shape = (encoder.in_channels, encoder.image_size, encoder.image_size)

        def trace() -> StepCost:
            return trace_step(task, batch_size, shape, precision, plan.run, plan.trained_groups, model[0], before)

        has = handed(before, task.method, plan.trained_groups, plan.run)
        return self._known.of(model, batch_size, plan.passes, has, trace)
