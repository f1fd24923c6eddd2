"""The profile of a configuration: per stage and in total, in base units, under any convention.

Figures are of one client: the mean over all registered ones, whether drawn or not, except memory, which is the
largest of any client.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from math import prod

from fedbench.config.load import config_hash
from fedbench.config.schema import Config
from fedbench.conventions import ConventionName
from fedbench.encoders.tensor_groups import HEADS, block_groups, group_of, groups_of
from fedbench.federation import Mechanism, StagePlan, Strategy
from fedbench.federation.codec import Direction, Way
from fedbench.federation.dispatch import declare_packed, specs_by_group
from fedbench.federation.experiment import check
from fedbench.federation.mechanism import figures
from fedbench.federation.messages import know_messages
from fedbench.federation.naming import strategy_label
from fedbench.federation.protocol import Visit
from fedbench.federation.server_rehearsal import ServerWork
from fedbench.federation.shipment import Shipment, describe
from fedbench.federation.strategy import active_mechanisms
from fedbench.federation.wire import Wire
from fedbench.metering.costs import StepCosts
from fedbench.metering.counting import forward_macs_by_group, paper_epoch_macs
from fedbench.metering.step import StepCost, trace_edit, trace_step
from fedbench.profiling.rehearsal import rehearse
from fedbench.profiling.sizes import Sizes, client_sizes
from fedbench.training.local import num_steps, untrained_task
from fedbench.training.model import build_model
from fedbench.training.visit import NOTHING_KEPT, KeptBefore, KeptSpec, by_block, handed

PAPER_RULES: tuple[ConventionName, ...] = ("paper-v4", "paper-v3")
PARTS = ("encoder", "heads", "buffers", "hand_over", "catch_up", "framing")
PAPER_GB = 1000 * 2**20  # bytes: what [LW] v4 calls a GB
Number = int | float


@dataclass(frozen=True)
class StageProfile:
    """One stage; bytes and FLOPs over all its rounds.

    Attributes:
        local_steps: of one client, over all its rounds.
        flops_per_step: of a step at the largest batch.
        server_steps: of the server's own training, over all rounds; server_flops: of these and of its edits,
            convention `step`.
        server_peak_memory_bytes: of the step or edit that needs most.
        flops, download_bytes, upload_bytes: by convention.
        download, upload: bytes by what they are (`PARTS`), convention `step`.
        memory: bytes at the peak by what they are; empty if nothing was traced.
    """

    stage: int
    rounds: int
    depth: int
    trained_parameters: int
    frozen_parameters: int
    local_steps: Number
    flops_per_step: int
    flops_by_phase: Mapping[str, int]
    server_steps: int
    server_flops: int
    server_peak_memory_bytes: int
    flops: Mapping[ConventionName, Number]
    download_bytes: Mapping[ConventionName, Number]
    upload_bytes: Mapping[ConventionName, Number]
    download: Mapping[str, Number]
    upload: Mapping[str, Number]
    peak_memory_bytes: int
    memory: Mapping[str, int]


@dataclass(frozen=True)
class Profile:
    """A configuration's stages, what was assumed about the size of its data, and what cannot be known before."""

    strategy: str
    stages: tuple[StageProfile, ...]
    sizes: Sizes
    unknown: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)  # what mechanisms tell of the whole run

    @property
    def server_flops(self) -> int:
        """Of the server's own training, over the whole run, convention `step`."""
        return sum(stage.server_flops for stage in self.stages)

    @property
    def total_flops(self) -> Number:
        """Of all clients and the server, over the whole run, convention `step`."""
        return self.total("flops", "step") * len(self.sizes.clients) + self.server_flops

    @property
    def server_peak_memory_bytes(self) -> int:
        """Of the server's training, in the stage that needs most; 0 if it does not train."""
        return max(stage.server_peak_memory_bytes for stage in self.stages)

    def total(self, figure: str, convention: ConventionName) -> Number:
        """Sum over the stages of `flops`, `download_bytes` or `upload_bytes`."""
        return sum(getattr(stage, figure)[convention] for stage in self.stages)

    @property
    def peak_memory_bytes(self) -> int:
        """Of the stage that needs most."""
        return max(stage.peak_memory_bytes for stage in self.stages)

    @property
    def paper_gflops(self) -> float:
        """In [LW] v4's convention and unit (10^9 multiply-accumulates)."""
        return self.total("flops", "paper-v4") / 1e9

    @property
    def paper_comm_gb(self) -> float:
        """In [LW] v4's convention and unit (1000 MiB), both directions."""
        both = self.total("download_bytes", "paper-v4") + self.total("upload_bytes", "paper-v4")
        return both / PAPER_GB


def profile(
    config: Config,
    samples: int | Sequence[int] | None = None,
    trace: bool = True,
    costs: StepCosts | None = None,
    server_samples: Mapping[str, int] | None = None,
    tried: bool = False,
) -> Profile:
    """Profile a configuration without its data.

    Args:
        samples: of every client, or of each one; None: as known from the configuration, see `client_sizes`.
        trace: False leaves out what needs a traced step (FLOPs in the convention `step`, and memory: zeros).
        costs: steps that were traced before, and place for those that are now; alike for all seeds.
        server_samples: images of the server, by mechanism; None: as follows from the configuration.
        tried: whether the dry run was made before, see `fedbench.federation.experiment.check`.

    Raises:
        UserError: the configuration cannot be run.
    """
    sizes, stages = _stages(config, samples, server_samples, costs or StepCosts(), tried)
    kept: dict[int, KeptBySpecs] = {}  # by client
    profiles = tuple(stage.profile(sizes, trace, kept) for stage in stages)
    told = figures(active_mechanisms(config.strategy).values(), config, config.federation.rounds)
    return Profile(strategy_label(config), profiles, sizes, _unknown(config), told)


def _unknown(config: Config) -> tuple[str, ...]:
    """What depends on values that only training has."""
    mechanisms = active_mechanisms(config.strategy).items()
    ending = [name for name, one in mechanisms if type(one).ends_stage is not Mechanism.ends_stage]
    return tuple(
        f"{name} ends a stage by a criterion: these are the figures of the fixed rounds, a run may have others"
        for name in ending
    )


def _stages(
    config: Config,
    samples: int | Sequence[int] | None,
    server_samples: Mapping[str, int] | None,
    costs: StepCosts,
    tried: bool,
) -> tuple[Sizes, list["_Stage"]]:
    """The stages of a configuration with all their visits."""
    strategy, mechanisms, plans, rounds_per_stage = check(config, tried)
    sizes = client_sizes(config, mechanisms, samples, server_samples)
    terms: tuple[Strategy | Mechanism, ...] = (strategy, *mechanisms)
    rounds = zip(plans, rounds_per_stage, strict=True)
    stages = [_Stage(config, terms, plan, stage, n, costs) for stage, (plan, n) in enumerate(rounds, 1)]
    specs = [stage.specs for stage in stages]
    for one in rehearse(config, strategy, mechanisms, plans, rounds_per_stage, specs):
        stages[one.stage - 1].visits += one.visits
        stages[one.stage - 1].work += one.work
        stages[one.stage - 1].codec_flops += one.codec_flops
    return sizes, stages


KeptBySpecs = tuple[
    int, dict[tuple[str, str], tuple[KeptSpec, ...]]
]  # the stage, and what is kept by plugin and part
NOTHING = StepCost(0, 0, {}, {})


class _Stage:
    """Gathers a stage's visits, traces the steps that they need, sums up."""

    def __init__(
        self,
        config: Config,
        terms: tuple[Strategy | Mechanism, ...],
        plan: StagePlan,
        stage: int,
        rounds: int,
        costs: StepCosts,
    ) -> None:
        self.config, self.terms, self.plan, self.stage, self.rounds = config, terms, plan, stage, rounds
        self.image_shape = config.encoder.image_shape
        self.wire = Wire([one for one in terms if isinstance(one, Mechanism)], config.seed)
        self.wire.start_stage(plan.finished)
        self.model = build_model(config, plan.depth)
        self.specs = describe(self.model)
        self.macs = forward_macs_by_group(self.model, self.image_shape)
        self.visits: list[Visit] = []
        self.work: list[ServerWork] = []
        self.codec_flops = 0  # the server's
        self._alike = config_hash(config.model_copy(update={"seed": 0}))  # the seed does not change a step's cost
        self._costs = costs

    def profile(self, sizes: Sizes, trace: bool, kept: dict[int, KeptBySpecs]) -> StageProfile:
        """Sum up the visits; `kept`, what clients keep, goes on from stage to stage."""
        flops, steps, costs = 0, 0, [NOTHING]
        for visit in self.visits:
            batch, local_steps = self._batch(sizes.clients[visit.client])
            steps += local_steps
            if trace:
                costs.append(self._cost(batch, visit, kept))
                flops += costs[-1].of_visit(local_steps) + visit.codec_flops
        highest, dearest = max(costs, key=_peak), max(costs, key=_flops)
        downloads = [visit.download for visit in self.visits]
        uploads = [visit.upload for visit in self.visits if visit.upload is not None]
        plans = [visit.plan for visit in self.visits] or [self.plan]
        trained, whole = self._parameters()
        server, server_steps = self._server(sizes.server, trace)
        changing = self._changing()
        return StageProfile(
            stage=self.stage,
            rounds=self.rounds,
            depth=self.plan.depth,
            trained_parameters=trained,
            frozen_parameters=whole - trained,
            local_steps=self._each(steps),
            flops_per_step=dearest.flops,
            flops_by_phase=dearest.flops_by_phase,
            server_steps=server_steps,
            server_flops=sum(cost.flops * times for cost, times in server) + self.codec_flops * trace,
            server_peak_memory_bytes=max((cost.peak_memory_bytes for cost, _ in server), default=0),
            flops={"step": self._each(flops), **self._paper_macs()},
            download_bytes=self._traffic(
                "download", downloads, [changing - block_groups(one.dropped) for one in plans]
            ),
            upload_bytes=self._traffic("upload", uploads, [one.uploaded_groups for one in plans]),
            download={part: self._each(value) for part, value in parts(downloads).items()},
            upload={part: self._each(value) for part, value in parts(uploads).items()},
            peak_memory_bytes=highest.peak_memory_bytes,
            memory=highest.memory,
        )

    def _changing(self) -> frozenset[str]:
        """Groups that the paper's rules send down in every round."""
        trains = any(one.epochs for one in self.work)
        anew = trains or self.config.federation.client_memory == "none"  # all that a client needs, every round
        return frozenset(groups_of(self.specs)) if anew else self.plan.trained_groups & self.plan.uploaded_groups

    def _packed(self, way: Way) -> frozenset[str]:
        """Groups that are packed in every round of a client that is there in each."""
        forgets = way.direction == "download" and self.config.federation.client_memory == "none"
        return frozenset(
            group
            for group, specs in specs_by_group(self.specs).items()
            if self.wire.coded(group, specs, way) and not (forgets and self.wire.sends_changes(group, way))
        )

    def _each(self, total: int) -> Number:
        """The mean over all registered clients, whole if it is."""
        clients = self.config.federation.num_clients
        return total / clients if total % clients else total // clients

    def _batch(self, num_samples: int) -> tuple[int, int]:
        """Batch size and local steps of one visit."""
        batch_size, epochs = self.config.optimizer.batch_size, self.config.federation.local_epochs
        return min(batch_size, num_samples), num_steps(num_samples, batch_size, epochs)

    def _cost(self, batch: int, visit: Visit, kept: dict[int, KeptBySpecs]) -> StepCost:
        """Of a visit, behind which its client keeps what `kept` then has."""
        stage, parts = kept.get(visit.client, (0, {}))
        before = KeptBefore(stage == self.stage, tuple(spec for specs in parts.values() for spec in specs))
        cost = self._step_cost(self.terms, visit.plan, batch, before)
        new = {part: by_block(specs, visit.plan.run) for part, specs in cost.keeps.items()}
        if parts or new:
            kept[visit.client] = (self.stage, parts | new)
        return cost

    def _server(self, samples: Mapping[str, int], trace: bool) -> tuple[list[tuple[StepCost, int]], int]:
        """What the server does in all rounds: costs and how often, and the number of steps.

        `samples`: images of the server, by mechanism.
        """
        batch_size, plan = self.config.optimizer.batch_size, StagePlan.end_to_end(self.plan.depth)
        steps = Counter[int]()  # by batch
        for one in self.work:
            if one.epochs:
                images = samples[one.mechanism]
                steps[min(batch_size, images)] += num_steps(images, batch_size, one.epochs)
        if not trace:
            return [], steps.total()
        costs = [(self._step_cost((), plan, batch, NOTHING_KEPT), times) for batch, times in steps.items()]
        task = untrained_task(self.config, self.model, plan.trained_groups)
        for one in self.work:
            if one.function is not None:
                images = samples.get(one.mechanism, 0)
                costs.append((trace_edit(task, one.function, (images, *self.image_shape)), 1))
        return costs, steps.total()

    def _step_cost(
        self,
        terms: tuple[Strategy | Mechanism, ...],
        plan: StagePlan,
        batch: int,
        before: KeptBefore,
    ) -> StepCost:
        precision, shape = self.config.precision, self.image_shape
        where = plan.run, plan.trained_groups, self.stage, before, plan.way

        def trace() -> StepCost:
            task = untrained_task(self.config, self.model, plan.trained_groups, terms)
            know_messages(task, self.config)
            return trace_step(task, batch, shape, precision, *where)

        model = (self._alike, self.stage, bool(terms), plan.way)
        has = handed(before, self.model, plan.trained_groups, plan.run)
        return self._costs.of(model, batch, plan.passes, has, trace)

    def _parameters(self) -> tuple[int, int]:
        """Numbers of parameters that are trained, and of all."""
        sizes = {key: prod(spec.shape) for key, spec in self.specs.items() if not spec.is_buffer}
        trained = (size for key, size in sizes.items() if group_of(key) in self.plan.trained_groups)
        return sum(trained), sum(sizes.values())

    def _paper_macs(self) -> dict[ConventionName, Number]:
        """Of a client that takes part in every round; with depth dropout, on average over its visits."""
        # [LW] Table 2: SimCLR's figures are of both views; a method of one view has no second one
        views = 1 if self.model.target_encoder is not None else self.model.num_views
        epochs = self.rounds * self.config.federation.local_epochs * views
        plans = [visit.plan for visit in self.visits] or [self.plan]
        return {
            rule: _mean([paper_epoch_macs(self.macs, one.trained_groups, one.run, rule) for one in plans], epochs)
            for rule in PAPER_RULES
        }

    def _traffic(
        self, direction: Direction, shipments: Sequence[Shipment], exchanged: Sequence[Set[str]]
    ) -> dict[ConventionName, Number]:
        """Of a mean client; under the paper's rules, of one that takes part in every round.

        `exchanged`: groups that travel in a visit, by visit. The mean over them: plans may be narrowed by chance.
        """
        ways = [Way(direction, visit.tier) for visit in self.visits] or [Way(direction)]
        payloads = list(zip(map(frozenset, exchanged), ways, strict=True))
        declared = {  # few differ, of thousands of visits
            (groups, way): declare_packed(
                self.wire, way, self.specs, dict.fromkeys(groups, "round"), self._packed(way) & groups
            )
            for groups, way in set(payloads)
        }
        paper = {
            rule: _mean([counted[payload] for payload in payloads], self.rounds)
            for rule in PAPER_RULES
            for counted in [{payload: shipment.counted(rule) for payload, shipment in declared.items()}]
        }
        return {"step": self._each(sum(shipment.num_bytes for shipment in shipments)), **paper}


def parts(shipments: Iterable[Shipment]) -> dict[str, int]:
    """Bytes by what they are (`PARTS`): each byte is listed once."""
    totals = dict.fromkeys(PARTS, 0)
    for shipment in shipments:
        for entry in shipment.entries:
            totals["framing"] += entry.framing_bytes
            if entry.reason != "round":
                totals[entry.reason] += entry.value_bytes
                continue
            totals["buffers"] += entry.buffer_bytes
            totals["heads" if entry.group == HEADS else "encoder"] += entry.value_bytes - entry.buffer_bytes
    return totals


def _mean(values: Sequence[int], times: int) -> Number:
    total = sum(values) * times
    return 0 if not values else total / len(values) if total % len(values) else total // len(values)


def _peak(cost: StepCost) -> int:
    return cost.peak_memory_bytes


def _flops(cost: StepCost) -> int:
    return cost.flops
