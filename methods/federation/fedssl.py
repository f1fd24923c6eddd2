"""FedSSL: the whole encoder is trained end to end and averaged every round ([LW] Table 1)."""

from dataclasses import dataclass

from fedbench.federation import StagePlan, Strategy


@dataclass(frozen=True)
class FedSSL(Strategy):
    """One stage; everything is trained, everything travels."""

    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        """All S blocks."""
        return StagePlan(num_blocks, trainable=range(num_blocks), upload=range(num_blocks))
