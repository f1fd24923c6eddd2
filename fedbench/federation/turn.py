"""A client's turn, and the stage's plan narrowed for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedbench.federation.plan import StagePlan, check_visit_plan
from fedbench.random import generator

if TYPE_CHECKING:
    import torch

    from fedbench.federation.mechanism import Mechanism
    from fedbench.federation.strategy import Strategy


@dataclass(frozen=True)
class Turn:
    """Whose turn it is, and when: what `visit_plan` may depend on.

    Attributes:
        client: its number, 0-based.
        round_index: 0-based over the whole run; `round_in_stage` over the stage.
        rounds_in_stage: R_s.
        num_clients: registered ones.
        draw: a random stream of the plugin's own for this client and round, the same on every machine.
    """

    client: int
    round_index: int
    round_in_stage: int
    rounds_in_stage: int
    num_clients: int
    draw: torch.Generator


@dataclass(frozen=True)
class Narrowing:
    """What makes visits' plans out of stages': the strategy first, then each mechanism."""

    strategy: Strategy
    mechanisms: Sequence[Mechanism]
    seed: int
    num_clients: int

    def visit_plan(
        self, stage_plan: StagePlan, client: int, round_index: int, round_in_stage: int, rounds_in_stage: int
    ) -> StagePlan:
        """The plan of one client in one round.

        Raises:
            UserError: a plugin's is no part of the stage's.
        """
        plan, when = stage_plan, (client, round_index, round_in_stage, rounds_in_stage, self.num_clients)
        plugins: list[tuple[str | int, Strategy | Mechanism]] = [("strategy", self.strategy)]
        plugins += enumerate(self.mechanisms)
        for key, plugin in plugins:
            draw = generator(self.seed, "blocks", round_index, client, key)
            plan = check_visit_plan(plugin.visit_plan(plan, Turn(*when, draw)), plan, type(plugin).__name__)
        return plan
