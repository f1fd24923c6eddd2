"""The limit: one process that trains the clients one after the other and averages their weights."""

import torch
from workload import Workload, asked


def main() -> None:
    """Unlike `small_clients.py`, whose bare loop drops what it has trained, this one averages."""
    work = asked()
    workload = Workload(work)
    weights = list(workload.model.parameters())
    state = [weight.detach().clone() for weight in weights]
    for _ in range(work.rounds):
        mean = [torch.zeros_like(value) for value in state]
        for client in range(work.clients):
            with torch.no_grad():
                torch._foreach_copy_(weights, state)
            workload.train(client)
            with torch.no_grad():
                torch._foreach_add_(mean, weights, alpha=1 / work.clients)
        state = mean
        workload.report(work.clients, dict(zip(workload.start, state, strict=True)))


if __name__ == "__main__":
    main()
