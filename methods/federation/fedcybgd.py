"""FedCyBGD (Wang et al. 2024, arXiv:2406.11187): clients in turn, each trains one block and overwrites it.

A round is one client's turn. Block after block of the full-depth encoder is trained, client after client; a turn's
upload is one block, and norm and heads, which are trained in every turn (ours). The backward pass goes through all
blocks above, so that memory is not that of LW-FedSSL; a pass over N clients takes N turns of wall time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fedbench.config.schema import Config
from fedbench.errors import UserError
from fedbench.federation import StagePlan, Strategy, Turn


@dataclass(frozen=True)
class FedCyBGD(Strategy):
    """Turn t: client t mod N trains block t mod S (from 0)."""

    def check(self, config: Config) -> None:
        """A turn has one client."""
        if config.federation.participants not in (None, 1):
            raise UserError(
                f"federation.participants={config.federation.participants} with strategy=fedcybgd, which takes "
                "one client after the other; allowed: 1, or null"
            )

    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        """All S blocks are there, and each is trained in its turn."""
        return StagePlan.end_to_end(num_blocks)

    def clients(self, round_index: int, there: int) -> Sequence[int]:
        """The one whose turn it is."""
        return (round_index % there,)

    def visit_plan(self, plan: StagePlan, turn: Turn) -> StagePlan:
        """The one block whose turn it is."""
        return plan.limited_to([turn.round_index % plan.depth])
