"""Tiers of dense + gated SSL (after arXiv:2301.09164): rich clients go both ways, poor ones the gated way alone.

Ours: the paper is not federated. A poor client sends all its views through the gates, of which it computes a fixed
share (the transform `slim_gates`), so that its FLOPs and its memory fall. What is of the dense way alone, a second
norm beside each, it does not train: it sends those as it received them, which is counted, and they are averaged
over the rich.
"""

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from fedbench.config.schema import Config
from fedbench.encoders import load_transforms
from fedbench.errors import UserError
from fedbench.federation import ClientUpdate, Mechanism, ServerState, StagePlan, Turn

from ..transforms.gates import DENSE, GATED
from ..transforms.slim_gates import SlimGates


@dataclass(frozen=True)
class GatedTiers(Mechanism):
    """The first `rich` N of N clients go the ways that the SSL method chooses; `rich=1` is the strategy itself."""

    rich: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Fraction of the clients, the first ones by their numbers."""

    def check(self, config: Config) -> None:
        """Gates that a client can do with, and nothing behind them."""
        transforms = load_transforms(config.encoder)
        if not transforms or not isinstance(transforms[-1], SlimGates):
            names = [given["name"] for given in config.encoder.transforms or ()]
            raise UserError(
                f"strategy.gated_tiers with encoder.transforms={names}; allowed: slim_gates as the last of them"
            )

    def visit_plan(self, plan: StagePlan, turn: Turn) -> StagePlan:
        """The gated way for who is poor."""
        return replace(plan, way=GATED) if self._is_poor(turn.client, turn.num_clients) else plan

    def receive(self, update: ClientUpdate, server: ServerState) -> ClientUpdate:
        """Without what a poor client did not train."""
        if not self._is_poor(update.client, server.num_clients):
            return update
        return replace(
            update, state={key: one for key, one in update.state.items() if DENSE not in key.split(".")}
        )

    def _is_poor(self, client: int, num_clients: int) -> bool:
        return client >= self.rich * num_clients - 1e-9
