"""The cost of a step, traced once for all steps that cost the same."""

from collections.abc import Callable, Hashable, Iterable

from fedbench.metering.step import StepCost


class StepCosts:
    """What steps cost that were traced before."""

    def __init__(self) -> None:
        self._known: dict[tuple[Hashable, ...], StepCost] = {}

    def of(
        self,
        model: Hashable,
        batch_size: int,
        passes: Iterable[bool],
        before: Hashable,
        trace: Callable[[], StepCost],
    ) -> StepCost:
        """The cost of a step; `trace` is called only where none like it was traced.

        Args:
            model: names what is trained: equal for equal models, terms and settings.
            passes: of each block that is run whether it is trained (blocks are alike).
            before: what of the visit before the client is handed, blocks by their position.
        """
        key = (model, batch_size, *passes, before)
        if key not in self._known:
            self._known[key] = trace()
        return self._known[key]
