"""The row of the table: which blocks exist at a stage, which are trained, which are uploaded ([LW] Table 1).

The stem belongs to L_1; norm, reshape, heads and what several blocks share are trained and sent at every stage,
whatever the strategy; weights that a transform keeps as given are never trained.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import or_

from fedbench.encoders.tensor_groups import HEADS, block_group, block_groups
from fedbench.errors import UserError

ALWAYS = ("shared", "norm", "reshape", HEADS)


@dataclass(frozen=True)
class StagePlan:
    """One stage of a strategy, or that narrowed for one visit of one client (`Strategy.visit_plan`).

    Blocks are numbered from 0, as in a Python range: L_1 is block 0.

    Attributes:
        depth: blocks that the encoder has.
        trainable: blocks that a client trains.
        upload: blocks that a client sends back.
        older: blocks that are not this stage's newest; set where the stages are lined up.
        finished: blocks that an earlier stage trained and neither this nor a later one does; set there, too.
        dropped: blocks that a client does not run in a visit; it neither needs, trains nor uploads them.
        way: through the encoder, where a transform has several, that a visit takes alone; "": as the SSL method
            chooses.
    """

    depth: int
    trainable: Sequence[int]
    upload: Sequence[int]
    older: int = 0
    finished: frozenset[int] = frozenset()
    dropped: frozenset[int] = frozenset()
    way: str = ""

    @classmethod
    def end_to_end(cls, depth: int) -> "StagePlan":
        """Everything that there is is trained and uploaded."""
        return cls(depth, range(depth), range(depth))

    @property
    def trained_groups(self) -> frozenset[str]:
        """Groups with gradients on the client."""
        return _groups(self.trainable) - block_groups(self.dropped)

    @property
    def uploaded_groups(self) -> frozenset[str]:
        """Groups that a client sends back."""
        return _groups(self.upload) - block_groups(self.dropped)

    @property
    def newest(self) -> range:
        """Blocks that this stage added; where nothing grows, the last one."""
        return range(self.older, self.depth)

    @property
    def run(self) -> tuple[int, ...]:
        """Blocks that a client runs, ascending."""
        return tuple(block for block in range(self.depth) if block not in self.dropped)

    @property
    def passes(self) -> tuple[bool, ...]:
        """Whether the stem is trained, and each block that is run: what a step costs, where blocks are alike."""
        return ("stem" in self.trained_groups, *(block in self.trainable for block in self.run))

    def without(self, blocks: Iterable[int]) -> "StagePlan":
        """The same for a client that does not run `blocks`."""
        return replace(self, dropped=self.dropped | frozenset(blocks))

    def limited_to(self, blocks: Collection[int]) -> "StagePlan":
        """The same for a client that trains and uploads no other blocks than `blocks`; it runs all of them."""
        trainable, upload = ([one for one in plan if one in blocks] for plan in (self.trainable, self.upload))
        return replace(self, trainable=trainable, upload=upload)


def line_up(plans: Sequence[StagePlan]) -> list[StagePlan]:
    """The plans of a run's stages, each told which of its blocks are older than it, and which are finished."""
    depths = [plan.depth for plan in plans]
    older = [0, *depths[:-1]] if len(plans) > 1 else [depths[0] - 1]
    ended = accumulate((frozenset(finished_blocks(plans, stage + 1)) for stage in range(len(plans))), or_)
    finished = [frozenset[int](), *ended][: len(plans)]
    return [
        replace(plan, older=number, finished=blocks)
        for plan, number, blocks in zip(plans, older, finished, strict=True)
    ]


def finished_blocks(plans: Sequence[StagePlan], stage: int) -> tuple[int, ...]:
    """Blocks that the `stage`-th of these stages (1-based) trains and no later one does."""
    later = {block for plan in plans[stage:] for block in plan.trainable}
    return tuple(block for block in sorted(plans[stage - 1].trainable) if block not in later)


def _groups(blocks: Iterable[int]) -> frozenset[str]:
    numbered = block_groups(blocks)
    stem = {"stem"} if block_group(0) in numbered else set()
    return numbered | stem | set(ALWAYS)


def check_plans(plans: Sequence[StagePlan], num_blocks: int) -> None:
    """Refuse plans under which the encoder shrinks or does not end whole, and each that is incoherent.

    Raises:
        UserError: naming the stage, the field, the value and what is allowed.
    """
    for stage, plan in enumerate(plans, start=1):
        check_plan(plan, stage, num_blocks)
    depths = [plan.depth for plan in plans]
    if depths != sorted(depths) or depths[-1:] != [num_blocks]:
        raise UserError(
            f"plan: depths {depths}; allowed: at least one stage, rising to the encoder's {num_blocks} blocks"
        )


def check_plan(plan: object, stage: int, num_blocks: int) -> None:
    """Refuse a plan that names blocks which the encoder does not have at that stage.

    Raises:
        UserError: naming the stage, the field, the value and what is allowed.
    """
    if not isinstance(plan, StagePlan):
        raise UserError(f"plan of stage {stage} is {plan!r}; allowed: a StagePlan")
    if not 1 <= plan.depth <= num_blocks:
        raise UserError(f"plan of stage {stage}: depth={plan.depth}; allowed: 1 to {num_blocks}")
    for field in ("trainable", "upload"):
        blocks = list(getattr(plan, field))
        if any(block not in range(plan.depth) for block in blocks) or len(set(blocks)) != len(blocks):
            raise UserError(
                f"plan of stage {stage}: {field}={blocks}; allowed: distinct blocks from 0 to {plan.depth - 1}"
            )


def check_visit_plan(plan: object, stage: StagePlan, who: str) -> StagePlan:
    """A visit's plan, which must be a part of its stage's.

    Raises:
        UserError: it is not; naming `who` made it, the field, the value and what is allowed.
    """
    if not isinstance(plan, StagePlan) or plan.depth != stage.depth:
        raise UserError(f"{who}: visit_plan returned {plan!r}; allowed: a StagePlan of depth {stage.depth}")
    allowed = {"trainable": stage.trainable, "upload": stage.upload, "dropped": range(stage.depth)}
    for field, within in allowed.items():
        blocks = list(getattr(plan, field))
        if not set(blocks) <= set(within):
            raise UserError(
                f"{who}: visit_plan returned {field}={blocks}; allowed: some of the stage's {list(within)}"
            )
    if not plan.run:
        raise UserError(f"{who}: visit_plan drops every block; allowed: to leave one that is run")
    return plan


def split_rounds(rounds: int, num_stages: int) -> list[int]:
    """R_s = R / S; a remainder goes to the last stages."""
    share, rest = divmod(rounds, num_stages)
    return [share + (stage >= num_stages - rest) for stage in range(num_stages)]
