"""A federation that is run in several ways, which must all leave the same: for what travels, and what is kept."""

from contextlib import closing
from pathlib import Path

import torch

from fedbench.config import Config
from fedbench.encoders.tensor_groups import StateDict
from fedbench.federation.experiment import prepare
from fedbench.federation.federation import Federation
from fedbench.federation.record import RoundRecord
from fedbench.profiling import Profile, profile


def run(config: Config, folder: Path) -> tuple[StateDict, list[RoundRecord]]:
    """What the server has at the end, messages included, and the records."""
    with closing(Federation(prepare(config), folder)) as federation:
        records = list(federation.rounds())
        return federation.server.state | federation.server.messages, records


def stopped(config: Config, folder: Path, stop: int) -> tuple[StateDict, list[RoundRecord]]:
    """The same of a run that stopped after `stop` rounds and went on; the records are of those behind."""
    with closing(Federation(prepare(config), folder)) as first:
        rounds = first.rounds()
        for _ in range(stop):
            next(rounds)
        saved = first.checkpoint("cell")
    with closing(Federation(prepare(config), folder)) as second:
        second.resume(saved)
        records = list(second.rounds())
        return second.server.state | second.server.messages, records


def equal(one: StateDict, other: StateDict) -> bool:
    """The same keys, the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def assert_processes_change_nothing(config: Config, folder: Path) -> None:
    """Two workers leave the bits and the ledger of none."""
    alone, records = run(config, folder / "a")
    shared, again = run(config.model_copy(update={"engine": "processes", "workers": 2}), folder / "b")
    assert equal(alone, shared)
    assert [one.ledger() for one in records] == [one.ledger() for one in again]


def assert_a_stop_changes_nothing(config: Config, folder: Path, stop: int) -> None:
    """A run that stopped leaves the bits and the ledger of one that did not."""
    whole, records = run(config, folder / "a")
    state, again = stopped(config, folder / "b", stop)
    assert equal(whole, state)
    assert [one.ledger() for one in again] == [one.ledger() for one in records[stop:]]


def assert_a_profile_has_the_bytes_and_flops(config: Config, folder: Path) -> tuple[list[RoundRecord], Profile]:
    """To the byte and the FLOP, of all clients: a profile has those of the mean one."""
    experiment = prepare(config)
    _, records = run(config, folder)
    predicted = profile(config, [len(own) for own in experiment.client_indices])
    for figure in ("download_bytes", "upload_bytes", "flops"):
        mean = predicted.total(figure, "step")
        assert sum(getattr(record, figure) for record in records) == round(config.federation.num_clients * mean), (
            figure
        )
    return records, predicted
