"""LW-FedSSL: the encoder grows, only the newest block is trained ([LW] v4, Table 1; Algorithm 1)."""

from dataclasses import dataclass

from fedbench.federation import GrowingStrategy, StagePlan


@dataclass(frozen=True)
class LWFedSSL(GrowingStrategy):
    """Stage s adds block L_s (or a group of blocks), trains it and sends it; earlier blocks are frozen."""

    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        """L_1 .. L_s in the encoder, L_s trained and uploaded."""
        newest = self.newest_blocks(stage, num_blocks)  # L_s
        return StagePlan(depth=newest.stop, trainable=newest, upload=newest)
