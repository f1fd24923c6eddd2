"""The cells of a grid, what they will cost and what is done: nothing is trained."""

from collections.abc import Sequence
from pathlib import Path

from fedbench.config import Config
from fedbench.config.grid import differences
from fedbench.conventions import CONVENTIONS
from fedbench.federation.experiment import prepare, tried_before
from fedbench.metering.costs import StepCosts
from fedbench.profiling.profile import Profile, profile
from fedbench.running.cell import cell_name, identity
from fedbench.tables import GFLOPS, MB, MIB, bullets, markdown, number
from fedbench.tracking.progress import CellState, look
from fedbench.tracking.run_directory import RunDirectory

HEADERS = ("cell", "settings", "state", "GFLOPs", "server GFLOPs", "memory MiB", "down MB", "up MB")
FIGURES = 5  # of the headers


def forecast(configs: Sequence[Config], out: Path) -> str:
    """A table with one line for each cell, as Markdown.

    Raises:
        UserError: if any cell cannot be run.
    """
    costs = StepCosts()
    settings, lines, left = differences(configs), [], 0.0
    for (config, tried), setting in zip(tried_before(configs), settings, strict=True):
        experiment = prepare(config, tried)
        directory = RunDirectory(out / cell_name(experiment))
        state = look(directory, identity(experiment), config.federation.rounds, running=False)
        samples = [len(indices) for indices in experiment.client_indices]
        server = {name: len(images) for name, images in experiment.auxiliary.items()}
        cost = profile(config, samples, costs=costs, server_samples=server, tried=True)
        lines.append([state.name, setting, _words(state), *_figures(cost)])
        to_do = 1 - state.rounds_done / state.rounds if state.rounds else 0
        left += cost.total_flops * to_do
    rule = CONVENTIONS["step"]
    notes = bullets(
        f"About {number(left / GFLOPS)} GFLOPs of all clients and the server are left to do.",
        f"Of a mean client over the whole run; convention `step`. FLOPs: {rule.flops}. Bytes: {rule.traffic}.",
        "Server: its own training and edits. Memory: the highest peak of any client. Not counted: the probe.",
    )
    kept = [index for index, header in enumerate(HEADERS) if header != "settings" or any(settings)]
    headers, *rows = ([line[index] for index in kept] for line in (HEADERS, *lines))
    return f"{markdown(headers, rows, left=len(kept) - FIGURES)}\n\n{notes}"


def _words(state: CellState) -> str:
    done = f", {state.rounds_done} of {state.rounds} rounds done" if 0 < state.rounds_done < state.rounds else ""
    begun = done and state.state == "waiting"  # another process may be running it, or it was stopped
    return f"{'begun' if begun else state.state}{done}"


def _figures(cost: Profile) -> list[str]:
    return [
        number(cost.total("flops", "step") / GFLOPS),
        number(cost.server_flops / GFLOPS),
        number(cost.peak_memory_bytes / MIB),
        number(cost.total("download_bytes", "step") / MB),
        number(cost.total("upload_bytes", "step") / MB),
    ]
