"""SimSiam (Chen and He 2021, arXiv:2011.10566): predict the other view's projection, which is held fixed."""

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import SimSiamPredictionHead, SimSiamProjectionHead
from torch import Tensor

from fedbench.config.schema import SSLConfig
from fedbench.encoders import Encoder
from fedbench.ssl import SSLMethod, StepOutput


class SimSiam(SSLMethod):
    """-cos(p1, stopgrad(z2)) / 2 - cos(p2, stopgrad(z1)) / 2  (Eq. 2); no negatives, no target branch.

    The prediction head is a bottleneck: its hidden layer has a quarter of the output's width (Sec. 3), whatever
    `hidden_dim` is, which is the projection head's.
    """

    def __init__(self, encoder: Encoder, config: SSLConfig) -> None:
        super().__init__(encoder)
        hidden, out = config.hidden_dim, config.output_dim
        self.negative_cosine = NegativeCosineSimilarity()
        self.projection_head = SimSiamProjectionHead(encoder.feature_dim, hidden, out)
        self.prediction_head = SimSiamPredictionHead(out, max(1, out // 4), out)

    def training_step(self, views: tuple[Tensor, Tensor], batch_idx: int = 0) -> StepOutput:
        """In [-1, 1]; -1 where each prediction is parallel to what it predicts."""
        z1, z2 = self.project(views[0]), self.project(views[1])
        p1, p2 = self.prediction_head(z1), self.prediction_head(z2)
        # without detach() both sides would move towards each other, until all images are one point
        loss = self.negative_cosine(p1, z2.detach()) / 2 + self.negative_cosine(p2, z1.detach()) / 2
        return {"loss": loss, "projections": (z1, z2)}
