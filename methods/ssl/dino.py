"""DINO (Caron et al. 2021, arXiv:2104.14294): the student's distribution follows the teacher's, over other views.

Shapes: B samples, K output dimensions, V views.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import ProjectionHead
from pydantic import PositiveFloat
from torch import Tensor, nn

from fedbench.config.schema import Dimensions, Probability, SSLConfig
from fedbench.encoders import Encoder
from fedbench.ssl import SSLMethod, StepOutput

from ._unit_linear import UnitLinear


class DINOConfig(SSLConfig):
    """Of head and teacher; `temperature` is the student's, `output_dim` is K."""

    bottleneck_dim: Dimensions = 256
    """Dimensions in front of the last layer."""
    teacher_temperature: PositiveFloat = 0.04
    """Of the teacher's softmax; below the student's it sharpens."""
    center_momentum: Probability = 0.9
    """Of the centre, the moving mean of the teacher's outputs (Eq. 4)."""


class DINOHead(ProjectionHead):
    """Three layers to the bottleneck, length one, and prototypes of length one (App. C, without BatchNorm).

    lightly's computes the same; its last layer, of a deprecated kind, cannot be deep-copied for a target branch.
    """

    def __init__(self, dim: int, config: DINOConfig) -> None:
        hidden, bottleneck = config.hidden_dim, config.bottleneck_dim
        shapes = [(dim, hidden, nn.GELU()), (hidden, hidden, nn.GELU()), (hidden, bottleneck, None)]
        super().__init__([(*shape, None, activation) for *shape, activation in shapes])
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.last_layer = UnitLinear(bottleneck, config.output_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        return self.last_layer(F.normalize(super().forward(x), dim=1))


def cross_entropies(
    students: Sequence[Tensor], teachers: Sequence[Tensor], center_K: Tensor, config: DINOConfig
) -> Tensor:
    """mean over t, s != t of -sum_K softmax((g_t - c) / T_t) log softmax(g_s / T_s)  (Eq. 2, 3).

    `students` (B, K) of V views, of which the first are the `teachers`'. lightly's gives the same figure, with a
    temperature that is looked up in a schedule, which cannot be traced.
    """
    wanted = [((out.float() - center_K) / config.teacher_temperature).softmax(dim=1) for out in teachers]
    given = [(out.float() / config.temperature).log_softmax(dim=1) for out in students]
    pairs = [(p, log_q) for t, p in enumerate(wanted) for s, log_q in enumerate(given) if s != t]
    return torch.stack([-(p * log_q).sum(dim=1).mean() for p, log_q in pairs]).mean()


class DINO(SSLMethod):
    """The teacher, which is the target branch, sees the two views, the student also the small ones.

    The centre is a buffer of the model: it travels and is averaged with the heads.

    Departures: momentum, teacher temperature and weight decay keep their values (there: schedules over the whole
    training); the last layer is trained from the first step (there: from the second epoch); no clipped gradients.
    """

    takes_crops = True

    def __init__(self, encoder: Encoder, config: DINOConfig) -> None:
        super().__init__(encoder)
        self.config = config
        self.projection_head = DINOHead(encoder.feature_dim, config)
        self.add_target(config.momentum)
        self.center: Tensor
        self.register_buffer("center", torch.zeros(config.output_dim))

    def training_step(self, views: tuple[Tensor, ...], batch_idx: int = 0) -> StepOutput:
        """Cross-entropy over all pairs of a teacher's view and another view of the student's."""
        students = [self.project(view) for view in views]
        teachers = [self.target_project(view) for view in views[:2]]
        loss = cross_entropies(students, teachers, self.center, self.config)
        self.move_center(teachers)
        return {"loss": loss, "projections": (students[0], students[1])}

    @torch.no_grad()
    def move_center(self, teachers: Sequence[Tensor]) -> None:
        """c <- m c + (1 - m) mean of the teacher's outputs  (Eq. 4)."""
        mean_K = torch.cat(list(teachers)).float().mean(dim=0)
        self.center.lerp_(mean_K, 1 - self.config.center_momentum)
