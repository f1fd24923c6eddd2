"""What the steps of a run cost: traced on copies of its own tasks, once for all steps that cost the same."""

from fedbench.config.schema import Config
from fedbench.federation.client import Upload
from fedbench.federation.plan import StagePlan
from fedbench.federation.protocol import Visit
from fedbench.federation.server_training import ServerTraining
from fedbench.metering.costs import StepCosts
from fedbench.metering.step import StepCost, trace_edit, trace_step
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

    def of_server(self, training: ServerTraining, stage: int) -> list[tuple[StepCost, int]]:
        """Of what a mechanism did on the server in this round, and how often: edits, steps of all that exists."""
        task, num_samples = training.task, len(training.auxiliary)
        shape = (num_samples, *self.config.encoder.image_shape)
        costs = [(trace_edit(task, function, shape), 1) for function in training.edits]
        if training.num_steps:
            plan = StagePlan.end_to_end(training.plan.depth)
            costs.append((self._of((stage, "server"), task, plan, num_samples, NOTHING_KEPT), training.num_steps))
        return costs

    def _of(
        self, model: tuple[int, str], task: LocalTask, plan: StagePlan, num_samples: int, before: KeptBefore
    ) -> StepCost:
        precision, shape = self.config.precision, self.config.encoder.image_shape
        where = plan.run, plan.trained_groups, model[0], before, plan.way
        batch_size = min(self.config.optimizer.batch_size, num_samples)

        def trace() -> StepCost:
            return trace_step(task, batch_size, shape, precision, *where)

        has = handed(before, task.method, plan.trained_groups, plan.run)
        return self._known.of((*model, plan.way), batch_size, plan.passes, has, trace)
