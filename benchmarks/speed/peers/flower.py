"""Flower: federated averaging in its simulation on Ray, as many clients at a time as there are workers."""

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from workload import SIZES, Workload, asked, kept, read

client_app = ClientApp()


class Averaging(FedAvg):
    """Federated averaging that reports every round; nothing is evaluated."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.workload = workload

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, MetricRecord]:
        """Count the clients that have answered."""
        replies = list(replies)
        arrays, metrics = super().aggregate_train(server_round, replies)
        clients = sum(not reply.has_error() for reply in replies)
        self.workload.report(clients, arrays.to_torch_state_dict())
        return arrays, metrics


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """One client; an actor keeps model and data from one to the next."""
    work = message.content["config"]["work"]
    workload = kept(work)
    workload.model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    workload.train(context.node_config["partition-id"])
    arrays = ArrayRecord(workload.model.state_dict())
    metrics = MetricRecord({"num-examples": SIZES[read(work).size].samples})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def main() -> None:
    """One core for each client that is being trained."""
    work = asked()
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        workload = Workload(work)
        start, config = ArrayRecord(workload.model.state_dict()), ConfigRecord({"work": work.text})
        Averaging(workload).start(grid, start, work.rounds, train_config=config)

    resources = {"init_args": {"num_cpus": work.workers}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app, client_app, num_supernodes=work.clients, backend_config=resources)


if __name__ == "__main__":
    main()
