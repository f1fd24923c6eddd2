"""Prog-FedSSL: the encoder grows, and all of it that exists is trained ([LW] Table 1)."""

from dataclasses import dataclass

from fedbench.federation import GrowingStrategy, StagePlan


@dataclass(frozen=True)
class ProgFedSSL(GrowingStrategy):
    """Stage s adds block L_s (or a group of blocks); L_1 .. L_s are trained and sent."""

    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        """L_1 .. L_s in the encoder, all of them trained and uploaded."""
        blocks = range(self.newest_blocks(stage, num_blocks).stop)
        return StagePlan(depth=blocks.stop, trainable=blocks, upload=blocks)
