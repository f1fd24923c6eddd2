"""Who is sent what: the server's bookkeeping, which needs no tensor and so can be rehearsed without any."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from fedbench.encoders.tensor_groups import group_of, groups_of, needed_by
from fedbench.federation.plan import StagePlan
from fedbench.federation.shipment import Reason, Shipment, Specs, declare
from fedbench.federation.versions import Versions


@dataclass(frozen=True)
class Delivery:
    """What one client is to be sent before it trains.

    Attributes:
        groups: those that it lacks.
        versions: version of every group that it needs, those that it holds already included.
        shipment: the declared payload.
    """

    groups: tuple[str, ...]
    versions: Mapping[str, int]
    shipment: Shipment


class Dispatch:
    """Versions of the server's groups, and what follows from them."""

    def __init__(self, num_clients: int, clients_keep: bool = True) -> None:
        """With `clients_keep` false, a client holds nothing after its visit (the paper's worst case)."""
        self.clients_keep = clients_keep
        self.versions = Versions(num_clients)
        self.specs: Specs = {}
        self.groups: list[str] = []  # of the current stage's model, in the order of its state
        self._declared: dict[tuple[tuple[str, Reason], ...], Shipment] = {}

    def start_stage(self, plan: StagePlan, specs: Specs, anew: Set[str] = frozenset()) -> set[str]:
        """Take over the model of a new stage. Returns the groups that are new, have a new shape, or begin anew."""
        old = self.specs
        self.resume_stage(plan, specs)
        new = {group_of(key) for key, spec in specs.items() if key not in old or old[key].shape != spec.shape}
        new |= anew & set(self.groups)
        self.changed(new, aggregated=False)
        return new

    def resume_stage(self, plan: StagePlan, specs: Specs) -> None:
        """Go on in a stage that has begun: its versions are known already."""
        self.specs, self.plan = specs, plan
        self.groups = groups_of(specs)
        self._declared = {}

    def start_round(self) -> None:
        """What changed since the last round began is news in this one."""
        self.versions.start_round()

    def download(self, client: int, plan: StagePlan) -> Delivery:
        """What the client lacks of the groups that it needs; from here on it holds them.

        It needs everything but the blocks that it does not run.
        """
        dropped = needed_by(plan.dropped)
        needed = [group for group in self.groups if group not in dropped]
        missing = self.versions.missing(client, needed)
        self.versions.hold(client, missing)
        versions = {group: self.versions.current[group] for group in needed}
        return Delivery(tuple(missing), versions, self._declare({group: self._reason(group) for group in missing}))

    def upload(self, plan: StagePlan) -> Shipment:
        """What a client sends back after a visit of that plan."""
        sent = plan.uploaded_groups
        return self._declare({group: "round" for group in self.groups if group in sent})

    def trained(self, client: int, plan: StagePlan) -> None:
        """Local training overwrote what it trained: the client holds no version of that any more."""
        gone = plan.trained_groups if self.clients_keep else set(self.groups)
        self.versions.forget(client, [group for group in self.groups if group in gone])

    def changed(self, groups: Iterable[str], aggregated: bool) -> None:
        """The server's values of `groups` changed: by the clients' aggregate, or by its own doing."""
        for group in sorted(groups):
            self.versions.rise(group, aggregated)

    def _reason(self, group: str) -> Reason:
        """A finished block is handed over as the clients left it, once, and to those who are there then."""
        if group not in self.versions.news:
            return "catch_up"
        finished = group in self.versions.aggregated and group not in self.plan.trained_groups
        return "hand_over" if finished else "round"

    def _declare(self, reasons: Mapping[str, Reason]) -> Shipment:
        key = tuple(reasons.items())
        if key not in self._declared:
            self._declared[key] = declare(self.specs, reasons)
        return self._declared[key]
