"""Peak of the bytes of live tensors, followed storage by storage; works on real and on fake tensors."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """While active, adds a storage when an operation returns or first uses it, subtracts it when it dies.

    Counted: everything that lives as a tensor (parameters, gradients, optimizer state, activations, batch).
    Not counted: scratch space inside a kernel, an allocator's rounding and cache.
    """

    def __init__(self, alive: Iterable[Tensor]) -> None:
        super().__init__()
        self.current_bytes = 0
        self.peak_bytes = 0
        self._known: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = weakref.WeakKeyDictionary()
        for tensor in alive:
            self._add(tensor)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operation; follow what it returned, and what it used that was not known yet."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        num_bytes = storage.nbytes()
        self._known[storage] = num_bytes
        weakref.finalize(storage, self._subtract, num_bytes)
        self.current_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.current_bytes)

    def _subtract(self, num_bytes: int) -> None:
        self.current_bytes -= num_bytes
