"""Somebody who watches a federation and changes nothing in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from fedbench.federation.protocol import Visit
from fedbench.federation.strategy import ClientUpdate
from fedbench.ssl import SSLMethod

if TYPE_CHECKING:
    from fedbench.federation.client import Upload
    from fedbench.federation.record import RoundRecord


class Observer:
    """Is told what happens as it happens, with `engine=in_process`; what it is handed goes on changing.

    `server`: the server's tensors, by key of the online state.
    """

    def visit_started(self, visit: Visit, model: SSLMethod) -> None:
        """A client has loaded what it received, and begins to train."""

    def visit_ended(self, visit: Visit, model: SSLMethod) -> None:
        """It has trained."""

    def update_arrived(
        self, visit: Visit, upload: Upload, update: ClientUpdate | None, server: Mapping[str, Tensor]
    ) -> None:
        """The server has, or would have, what a client sent; `update` is None where it does not use it."""

    def round_aggregated(self, server: Mapping[str, Tensor]) -> None:
        """The server took over the aggregate of a round."""

    def round_ended(self, record: RoundRecord, server: Mapping[str, Tensor]) -> None:
        """After the server's own step."""
