"""FedMAE (arXiv:2303.11339): clients train encoders of one block, and the blocks are cascaded."""

from dataclasses import dataclass

from fedbench.config.schema import Config
from fedbench.encoders import outline
from fedbench.errors import UserError
from fedbench.federation import GrowingStrategy, StagePlan, Turn


@dataclass(frozen=True)
class FedMAE(GrowingStrategy):
    """In stage s a client trains block s alone, on what the stem makes of the images, and runs none before it.

    With `ssl.name=mae` it is the paper's; any SSL method can be trained so. Ours: the paper trains each one-block
    autoencoder with a patch projection of its own and cascades their blocks behind one of them; here the stem is
    the first block's, and the later ones learn behind it, frozen.
    """

    def check(self, config: Config) -> None:
        """A block must take what the stem makes, whichever block it is."""
        super().check(config)
        if not outline(config.encoder).keeps_shape:
            raise UserError(
                f"strategy=fedmae: blocks of encoder.name={config.encoder.name} change the shape of their input; "
                "allowed: encoders whose blocks keep it, such as vit"
            )

    def plan(self, stage: int, num_blocks: int) -> StagePlan:
        """The newest blocks, of an encoder that has all before them too."""
        newest = self.newest_blocks(stage, num_blocks)
        return StagePlan(depth=newest.stop, trainable=newest, upload=newest)

    def visit_plan(self, plan: StagePlan, turn: Turn) -> StagePlan:
        """Without the blocks before the newest, which a client is not sent either."""
        return plan.without(range(plan.newest.start))
