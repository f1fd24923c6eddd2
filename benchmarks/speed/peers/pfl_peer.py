"""pfl: federated averaging on its simulated backend; several processes are started by `torchrun`."""

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.internal.ops.pytorch_ops import distributed
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from workload import Workload, asked


class Averaging(FederatedAveraging):
    """Federated averaging whose clients train as everybody's do."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.workload = workload

    def train_one_user(self, initial_model_state, model, user_dataset, central_context):
        """What the client's training has changed."""
        self.workload.train(user_dataset.user_id)
        return model.get_model_difference(initial_model_state), Metrics()


class Unjudged(PyTorchModel):
    """A model that nobody evaluates; pfl would do that in the first round."""

    def evaluate(self, *_: object) -> Metrics:
        """No figures."""
        return Metrics()


class Reports(TrainingProcessCallback):
    """Report every round, from the first process."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        """Go on in any case, without figures of our own."""
        if distributed.global_rank == 0:
            clients = aggregate_metrics.to_simple_dict()["Train population | number of devices"]
            self.workload.report(clients, model.variable_map)
        return False, Metrics()


def main() -> None:
    """Updates are averaged with equal weights, and added: SGD with a learning rate of 1."""
    work = asked()
    workload = Workload(work)
    module, indices = workload.model, workload.experiment.client_indices
    module.loss = module.metrics = None  # pfl insists on both; nothing calls them here
    model = Unjudged(module, torch.optim.AdamW, torch.optim.SGD(module.parameters(), lr=1.0))
    np.random.seed(0)  # all processes must draw alike
    clients = FederatedDataset(
        lambda client: Dataset([indices[client]], user_id=client),
        get_user_sampler("minimize_reuse", list(range(work.clients))),
    )
    Averaging(workload).run(
        NNAlgorithmParams(work.rounds, work.rounds, train_cohort_size=work.clients, val_cohort_size=None),
        SimulatedBackend(training_data=clients, val_data=clients),
        model,
        NNTrainHyperParams(local_batch_size=None, local_num_epochs=1, local_learning_rate=0.0),  # not read
        callbacks=[Reports(workload)],
        send_metrics_to_platform=False,
    )


if __name__ == "__main__":
    main()
