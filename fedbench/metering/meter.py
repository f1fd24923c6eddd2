"""Counts the FLOPs and the live tensor bytes of whatever runs inside it, on real and on fake tensors alike."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

REST = "activations"  # what nothing else claims


class Meter(TorchDispatchMode):
    """While active, follows storages: one is added when an operation returns or first uses it, and subtracted when
    it dies. FLOPs follow the formulas of torch's FlopCounterMode (matrix products, convolutions, attention).

    Counted as memory: everything that lives as a tensor. Not counted: scratch space inside a kernel, an
    allocator's rounding and cache.
    """

    def __init__(self, alive: Mapping[str, Iterable[Tensor]]) -> None:
        """`alive`: tensors that exist already, by the label under which the peak is to list them."""
        super().__init__()
        self.phase = ""  # FLOPs are counted under this name
        self.flops: Counter[str] = Counter()
        self.current_bytes = 0
        self.peak_bytes = 0
        self._peak_time = 0
        self._log: list[tuple[int, int]] = []  # (number of a storage, bytes that it adds), in the order of time
        self._alive: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}  # by address
        self._labels: dict[int, str] = {}
        self._count = 0
        for label, tensors in alive.items():
            self.label(label, tensors)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operation; follow what it used and what it returned."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            self.flops[self.phase or self._grad_phase()] += formula(*args, **kwargs, out_val=result)
        for tensor in _tensors((args, tuple(kwargs.values()), result)):
            self._see(tensor)
        return result

    def enter(self, phase: str) -> None:
        """From here on FLOPs are counted under `phase`."""
        self.phase = phase

    def label(self, label: str, tensors: Iterable[Tensor]) -> None:
        """List these tensors under `label`, from now on and for the time before."""
        for tensor in tensors:
            self._labels[self._see(tensor)] = label

    def hold_used(self, label: str, tensors: Iterable[Tensor]) -> None:
        """Of these tensors, which exist outside, count those that an operation has used, under `label`.

        They count from the beginning: whoever uses them later has to keep them until then.
        """
        used = [tensor for tensor in tensors if tensor.untyped_storage()._cdata in self._alive]
        self.label(label, used)
        numbers = {self._see(tensor) for tensor in used}
        self._log.sort(key=lambda entry: entry[0] not in numbers)  # stable: the rest keeps its order
        sums = list(accumulate(num_bytes for _, num_bytes in self._log))
        self.peak_bytes = max(sums, default=0)
        self._peak_time = sums.index(self.peak_bytes) + 1 if sums else 0

    def peak(self) -> dict[str, int]:
        """Bytes by label at the moment of the peak; they add up to `peak_bytes`."""
        live: Counter[int] = Counter()
        for number, num_bytes in self._log[: self._peak_time]:
            live[number] += num_bytes
        parts: Counter[str] = Counter()
        for number, num_bytes in live.items():
            parts[self._labels.get(number, REST)] += num_bytes
        return dict(parts)

    @staticmethod
    def _grad_phase() -> str:
        """Without gradient run the shared frozen blocks, the target branch and the teachers."""
        return "forward with gradient" if torch.is_grad_enabled() else "forward without gradient"

    def _see(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._alive:
            return self._alive[address][0]
        number, num_bytes = self._count, storage.nbytes()
        self._count += 1

        def die(_: object) -> None:
            del self._alive[address]
            self._add(number, -num_bytes)

        self._alive[address] = (number, weakref.ref(storage, die))
        self._add(number, num_bytes)
        return number

    def _add(self, number: int, num_bytes: int) -> None:
        self._log.append((number, num_bytes))
        self.current_bytes += num_bytes
        if self.current_bytes > self.peak_bytes:
            self.peak_bytes, self._peak_time = self.current_bytes, len(self._log)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors among arguments and results of an operation: alone, or in lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
