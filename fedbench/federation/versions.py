"""The download follows from versions: a client is sent what it needs and does not hold in the current version.

From this one rule fall out FedSSL's full download, LW-FedSSL's newest block, the hand-over of a finished block
([LW] Algorithm 1, line 14) and the catch-up of a client that was away.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fedbench.encoders.tensor_groups import group_of_variant

NOTHING = 0  # version of a group that a client does not hold


class Versions:
    """Versions of the server's tensor groups, and which of them each client holds.

    Memory: one integer per client and group, no weights.
    """

    def __init__(self, num_clients: int) -> None:
        self.current: dict[str, int] = {}
        self._num_clients = num_clients
        self._held: dict[str, np.ndarray] = {}
        self.news: set[str] = set()  # groups that changed since the round before this one began
        self.aggregated: set[str] = set()  # groups whose current values are an aggregate of clients'
        self._risen: set[str] = set()
        self._returned = False  # whether clients' aggregate is among what rose
        self.published: dict[str, tuple[int, int]] = {}  # variant of a group -> version sent last, and that before

    def rise(self, group: str, aggregated: bool) -> None:
        """The server's values of `group` changed, or came into being."""
        self.current[group] = self.current.get(group, NOTHING) + 1
        self._risen.add(group)
        self._returned |= aggregated
        (self.aggregated.add if aggregated else self.aggregated.discard)(group)
        self._held.setdefault(group, np.full(self._num_clients, NOTHING, dtype=np.int32))

    def publish(self, group: str, variant: str) -> bool:
        """Clients are sent the current version from here on. Returns whether they were sent another one so far."""
        last, _ = self.published.get(variant, (NOTHING, NOTHING))
        if last == self.current[group]:
            return False
        self.published[variant] = (self.current[group], last)
        return True

    def begin_anew(self, group: str) -> None:
        """What clients were sent of a group has nothing to do with what they will be sent."""
        self.published = {name: sent for name, sent in self.published.items() if group_of_variant(name) != group}

    def start_round(self) -> None:
        """What rose last is news in this round; what is lacking besides is caught up.

        After a round from which nobody returned, its news are still news.
        """
        old = set() if self._returned else self.news
        self.news, self._risen, self._returned = self._risen | old, set(), False

    def missing(self, client: int, needed: Iterable[str]) -> list[str]:
        """Groups among `needed` that the client does not hold in the current version."""
        return [group for group in needed if self._held[group][client] != self.current[group]]

    def held_by(self, client: int, group: str) -> int:
        """The version that a client holds, `NOTHING` if none."""
        return int(self._held[group][client])

    def hold(self, client: int, groups: Iterable[str]) -> None:
        """The client received the current version of `groups`."""
        for group in groups:
            self._held[group][client] = self.current[group]

    def held_by_anyone(self, group: str) -> bool:
        """Whether some client holds the current version."""
        return bool((self._held[group] == self.current[group]).any())

    def facts(self) -> dict[str, object]:
        """All but what clients hold, as plain values."""
        return {
            "current": self.current,
            "news": sorted(self.news),
            "aggregated": sorted(self.aggregated),
            "risen": sorted(self._risen),
            "returned": self._returned,
            **({"published": self.published} if self.published else {}),
        }

    def held(self) -> dict[str, np.ndarray]:
        """Group -> version that each client holds."""
        return self._held

    def restore(self, facts: Mapping[str, Any], held: Mapping[str, np.ndarray]) -> None:
        """Go on from `facts` and `held`."""
        self.current = dict(facts["current"])
        self.news, self.aggregated, self._risen = (set(facts[key]) for key in ("news", "aggregated", "risen"))
        self._returned = facts["returned"]
        published = facts.get("published", {})
        self.published = {group: (last, before) for group, (last, before) in published.items()}
        self._held = dict(held)

    def forget(self, client: int, groups: Iterable[str]) -> None:
        """The client's local training overwrote `groups`."""
        for group in groups:
            self._held[group][client] = NOTHING
