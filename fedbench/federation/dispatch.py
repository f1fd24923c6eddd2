"""Who is sent what: the server's bookkeeping, which needs no tensor and so can be rehearsed without any."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace

from fedbench.encoders.tensor_groups import (
    ALL,
    Specs,
    TensorSpec,
    beside,
    group_of,
    groups_of,
    needed_by,
    travelling,
    variant,
)
from fedbench.federation.codec import Way
from fedbench.federation.plan import StagePlan
from fedbench.federation.shipment import Reason, Shipment, declare
from fedbench.federation.versions import NOTHING, Versions
from fedbench.federation.wire import Wire


@dataclass(frozen=True)
class Delivery:
    """What one client is to be sent before it trains.

    Attributes:
        groups: those that it lacks.
        versions: version of every group that it needs, those that it holds already included.
        shipment: the declared payload.
        bases: of the groups that travel packed, the version of which they are a change; `NOTHING`: of none.
        tier: of the client.
    """

    groups: tuple[str, ...]
    versions: Mapping[str, int]
    shipment: Shipment
    bases: Mapping[str, int]
    tier: int = 0


class Dispatch:
    """Versions of the server's groups, and what follows from them."""

    def __init__(self, num_clients: int, clients_keep: bool = True, wire: Wire | None = None) -> None:
        """With `clients_keep` false, a client holds nothing after its visit (the paper's worst case)."""
        self.clients_keep = clients_keep
        self.wire = wire or Wire()
        self.versions = Versions(num_clients)
        self.specs: Specs = {}
        self.by_group: dict[str, Specs] = {}
        self.groups: list[str] = []  # of the current stage's model, in the order of its state
        self.codec_flops = 0  # of the server in this round: what it packs once for all, and each upload
        self._declared: dict[object, Shipment] = {}

    def start_stage(self, plan: StagePlan, specs: Specs, anew: Set[str] = frozenset()) -> set[str]:
        """Take over the model of a new stage. Returns the groups that are new, have a new shape, or begin anew."""
        old = self.specs
        self.resume_stage(plan, specs)
        new = {group_of(key) for key, spec in specs.items() if key not in old or old[key].shape != spec.shape}
        new |= anew & set(self.groups)
        for group in new:
            self.versions.begin_anew(group)
        self.changed(new, aggregated=False)
        return new

    def resume_stage(self, plan: StagePlan, specs: Specs) -> None:
        """Go on in a stage that has begun: its versions are known already."""
        self.specs, self.plan = specs, plan
        self.wire.start_stage(plan.finished)
        self.groups = groups_of(specs)
        self.by_group = specs_by_group(specs)
        self._declared = {}

    def start_round(self) -> None:
        """What changed since the last round began is news in this one."""
        self.versions.start_round()
        self.codec_flops = 0

    def download(self, client: int, plan: StagePlan) -> Delivery:
        """What the client lacks of the groups that it needs; from here on it holds them.

        It needs everything but the blocks that it does not run.
        """
        dropped = needed_by(plan.dropped)
        needed = [group for group in self.groups if beside(group) not in dropped]
        missing = self.versions.missing(client, needed)
        way = self.wire.way("download", client)
        bases = self._bases(client, missing, way)
        self.versions.hold(client, missing)
        versions = {group: self.versions.current[group] for group in needed}
        reasons = {group: self.reason(group) for group in missing}
        shipment = self._declare(way, reasons, frozenset(bases))
        return Delivery(tuple(missing), versions, shipment, bases, way.tier)

    def _bases(self, client: int, missing: Iterable[str], way: Way) -> dict[str, int]:
        """Of the groups that a client lacks, those that can be sent packed."""
        bases: dict[str, int] = {}
        for group in missing if self.wire.packs else ():
            if not self.coded(group, way):
                continue
            is_new = self.wire.personal is not None or self.versions.publish(group, variant(group, way.tier))
            base = self.base(group, way.tier)
            if base is None:
                continue
            if is_new:
                self.codec_flops += sum(self.wire.flops(group, self.by_group[group], way))
            if base in (NOTHING, self.versions.held_by(client, group)):
                bases[group] = base
        return bases

    def coded(self, group: str, way: Way) -> Specs:
        """Of a group, the tensors that travel packed; none if it travels as it is."""
        return self.wire.coded(group, self.by_group[group], way)

    def base(self, group: str, tier: int) -> int | None:
        """The version of which what clients are sent is a change; `NOTHING`: of none; None: it is not packed."""
        if not self.wire.sends_changes(group, Way("download", tier)):
            return NOTHING
        before = self.versions.published[variant(group, tier)][1]
        return before if before != NOTHING and self.clients_keep else None

    def upload(self, plan: StagePlan, client: int = 0) -> Shipment:
        """What a client sends back after a visit of that plan."""
        sent, way = plan.uploaded_groups, self.wire.way("upload", client)
        groups = [group for group in self.groups if beside(group) in {*sent, ALL}]
        packed = [group for group in groups if self.coded(group, way)]
        shipment = self._declare(way, dict.fromkeys(groups, "round"), frozenset(packed))
        self.codec_flops += shipment.unpack_flops
        return shipment

    def trained(self, client: int, plan: StagePlan) -> None:
        """Local training overwrote what it trained: the client holds no version of that any more.

        Where it is sent changes, it keeps what it received of those groups on its disk. Of personal payloads it
        holds none: no version of the server's says what is in them.
        """
        holds = self.clients_keep and self.wire.personal is None
        gone = set(plan.trained_groups if holds else self.groups)
        if self.clients_keep and self.wire.codecs:
            way = self.wire.way("download", client)
            gone = {group for group in gone if not self.wire.sends_changes(group, way)}
        self.versions.forget(client, [group for group in self.groups if group in gone])

    def changed(self, groups: Iterable[str], aggregated: bool) -> None:
        """The server's values of `groups` changed: by the clients' aggregate, or by its own doing."""
        for group in sorted(groups):
            self.versions.rise(group, aggregated)

    def reason(self, group: str) -> Reason:
        """Why it is sent now; a finished block is handed over once, and to those who are there then."""
        if group not in self.versions.news:
            return "catch_up"
        return "hand_over" if self.is_finished(group) else "round"

    def is_finished(self, group: str) -> bool:
        """Whether its values are as clients left them in an earlier stage."""
        return group in self.versions.aggregated and group not in self.plan.trained_groups

    def _declare(self, way: Way, reasons: Mapping[str, Reason], packed: frozenset[str]) -> Shipment:
        way = self.wire.alike(way)
        key = (way, tuple(reasons.items()), packed)
        if key not in self._declared:
            specs = travelling(self.specs, way.direction)
            self._declared[key] = declare_packed(self.wire, way, specs, reasons, packed)
        return self._declared[key]


def specs_by_group(specs: Specs) -> dict[str, Specs]:
    """The tensors of each group."""
    parts: dict[str, dict[str, TensorSpec]] = {}
    for key, spec in specs.items():
        parts.setdefault(group_of(key), {})[key] = spec
    return dict(parts)


def declare_packed(
    wire: Wire, way: Way, specs: Specs, reasons: Mapping[str, Reason], packed: Set[str]
) -> Shipment:
    """The payload of the groups that `reasons` names, those among `packed` in packed form."""
    groups = specs_by_group(specs) if packed else {}
    travels = {key: spec for key, spec in specs.items() if group_of(key) not in packed}
    for group in packed:
        travels |= wire.specs(group, groups[group], way)
    packing = unpacking = 0
    for group in packed:
        pack, unpack = wire.flops(group, groups[group], way)
        unpacking += unpack
        packing += pack + unpack * (way.direction == "upload" and wire.has_feedback(group, way))
    return replace(declare(travels, reasons), pack_flops=packing, unpack_flops=unpacking)
