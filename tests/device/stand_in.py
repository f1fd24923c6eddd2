"""A second device without hardware: tensors on `device(type='standin')` that keep their values in a CPU tensor.

What a GPU refuses, it refuses: tensors of two devices in one operation (scalars apart, and indices), a generator
of another device, numpy. What makes a GPU wait, it counts: copies from the host and to it, and every value that
Python reads. An allocator adds up the bytes that live.

torch takes it for an accelerator that is not built in (dispatch key PrivateUse1) and calls `__torch_dispatch__`
for every operation on its tensors. Generators and the allocator's figures exist in C++ only: `switched_on` puts
stand-ins in their place, and takes them away again. The device must be registered before the process first runs
a backward pass, which is when autograd counts the devices. It has no kernels of its own for autocast.
"""

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"
COPIES = ("aten::copy_", "aten::_to_copy", "aten::_foreach_copy_")  # take tensors of both devices
LOOKUPS = ("aten::index", "aten::index_put_")  # take indices from the CPU, as on a GPU: a copy to the device
RESIZING = ("arange", "arange.start", "arange.start_step", "eye", "eye.m")  # torch would make them by resizing
CPUGenerator = torch.Generator


class Module:
    """`torch.standin`, and what torch asks of any device's module."""

    def is_available(self) -> bool:
        """Only while it is switched on: other tests of the process see no accelerator."""
        return _on

    def is_initialized(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed(self, seed: int) -> None:
        """Of the draws that name no generator."""
        noise.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        """As `torch.random.fork_rng` asks of every accelerator that a process knows."""
        return noise.get_state()

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        noise.set_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend(NAME, backend_module=Module())
DEVICE = torch.device(NAME, 0)  # a name that torch knows from here on


class Allocator:
    """Bytes of the storages that live on the device; `peak` is the most there were since `reset_peak`."""

    def __init__(self) -> None:
        self.current = self.peak = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def hold(self, values: Tensor) -> None:
        """Count the storage of `values`, once, until it dies."""
        storage = values.untyped_storage()
        address, num_bytes = storage._cdata, storage.nbytes()
        if address in self._alive:
            return

        def free(_: object) -> None:
            del self._alive[address]
            self.current -= num_bytes

        self._alive[address] = weakref.ref(storage, free)
        self.current += num_bytes
        self.peak = max(self.peak, self.current)

    def reset_peak(self) -> None:
        """Forget earlier peaks."""
        self.peak = self.current


@dataclass
class Counts:
    """Copies to the host, values that Python read, copies to the device; a read is not a copy here."""

    to_host: int = 0
    reads: int = 0
    to_device: int = 0

    @property
    def waits(self) -> int:
        """How often the host had to wait for the device."""
        return self.to_host + self.reads


class DeviceGenerator(CPUGenerator):
    """Draws what a CPU's draws, on the stand-in device only."""

    known: ClassVar[dict[int, "DeviceGenerator"]] = {}  # by address: operations are handed the C++ part alone

    def __new__(cls, device: object = None) -> "DeviceGenerator":
        new = super().__new__(cls, "cpu")
        cls.known[new._cdata] = new
        return new

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The stand-in."""
        return DEVICE


class _OwnGenerators(TorchFunctionMode):
    """Refuses a draw on the CPU from a generator of the stand-in; the other way round `_check` does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        drawn_from = (kwargs or {}).get("generator")
        if isinstance(drawn_from, DeviceGenerator) and isinstance(result, Tensor) and result.device != DEVICE:
            raise RuntimeError(f"{func}: expected a 'cpu' generator, found a {NAME!r} one")
        return result


allocator, counts, noise = Allocator(), Counts(), DeviceGenerator()
_on = False


class DeviceTensor(Tensor):
    """Its values are in the CPU tensor `values`; no operation on it escapes `_run`."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "DeviceTensor":
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        tensor = Tensor._make_wrapper_subclass(cls, values.shape, device=DEVICE, **layout)
        tensor.values = values
        allocator.hold(values)
        return tensor

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, object]) -> Tensor:
        copy: Tensor = DeviceTensor(self.values.clone())
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        memo[id(self)] = copy
        return copy

    def tolist(self) -> Any:
        """One copy to the host, as on a GPU."""
        return self.cpu().tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.values})"


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """An operation with tensors of the device, or that makes one: on the CPU, within the device's rules."""
    given = list(_tensors((args, tuple(kwargs.values()))))
    ours = {id(tensor.values): tensor for tensor in given if isinstance(tensor, DeviceTensor)}
    theirs = {id(tensor): tensor for tensor in given if not isinstance(tensor, DeviceTensor)}
    asked = torch.device(kwargs["device"]) if kwargs.get("device") is not None else DEVICE
    _check(func, list(theirs.values()), kwargs, makes_ours=asked.type == NAME)
    _count(func, args, asked)
    on_cpu = {key: _each(_on_cpu, value) for key, value in kwargs.items()}
    if "device" in kwargs:
        on_cpu["device"] = torch.device("cpu")
    with _draws(func, kwargs):
        result = func(*_each(_on_cpu, tuple(args)), **on_cpu)

    def owned(value: Tensor) -> Tensor:
        known = ours.get(id(value), theirs.get(id(value)))  # changed in place
        if known is not None:
            assert known.shape == value.shape, f"{func} resized a tensor, which the stand-in cannot follow"
            return known
        return DeviceTensor(value) if asked.type == NAME else value

    return _each(owned, result)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors among arguments or results: alone, or in lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _each(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(_each(change, item) for item in value) if isinstance(value, list | tuple) else value


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.values if isinstance(tensor, DeviceTensor) else tensor


def _check(func: Any, theirs: Sequence[Tensor], kwargs: dict[str, Any], makes_ours: bool) -> None:
    name = func._schema.name
    if name not in (*COPIES, *LOOKUPS) and any(tensor.dim() for tensor in theirs):
        raise RuntimeError(f"{name}: expected all tensors to be on one device, found {DEVICE} and cpu")
    generator = kwargs.get("generator")
    if generator is not None and makes_ours and generator._cdata not in DeviceGenerator.known:
        raise RuntimeError(f"{name}: expected a {NAME!r} generator, found a {generator.device.type!r} one")


def _count(func: Any, args: Sequence[Any], asked: torch.device) -> None:
    """Note what crosses from one side to the other."""
    name, tensors = func._schema.name, list(_tensors(args))
    sides = [tensor.device.type for tensor in tensors if tensor.dim() or name in COPIES]
    if name == "aten::_to_copy":
        counts.to_host += asked.type != NAME
    elif name in COPIES and len(set(sides)) == 2:
        counts.to_host += sides[0] == "cpu"
        counts.to_device += sides[0] != "cpu"
    elif name in LOOKUPS:
        counts.to_device += "cpu" in sides
        counts.reads += any(tensor.dtype == torch.bool for tensor in tensors[1:])  # how many are to be found?
    elif {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags):
        counts.reads += 1


def _draws(func: Any, kwargs: dict[str, Any]) -> Any:
    """Without a generator of its own an operation draws from the device's."""
    if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
        return _instead_of_the_cpus(noise)
    return nullcontext()


@contextmanager
def _instead_of_the_cpus(generator: torch.Generator) -> Iterator[None]:
    cpus = torch.default_generator
    before = cpus.get_state()
    cpus.set_state(generator.get_state())
    yield
    generator.set_state(cpus.get_state())
    cpus.set_state(before)


def _fallback(func: Any, *args: Any, **kwargs: Any) -> Any:
    return _run(func, args, kwargs)


def _kernel(name: str) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    func = getattr(getattr(torch.ops.aten, packet), overload or "default")
    return lambda *args, **kwargs: _run(func, args, kwargs)


_libraries = [torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")]
_libraries[0].fallback(_fallback, "PrivateUse1")
for _name in RESIZING:
    _libraries[1].impl(_name, _kernel(_name), "PrivateUse1")


class _Generator(CPUGenerator):
    """`torch.Generator(device)`: the stand-in's or the CPU's."""

    def __new__(cls, device: Any = "cpu") -> CPUGenerator:  # type: ignore[misc]
        return DeviceGenerator() if torch.device(device).type == NAME else CPUGenerator(device)


@contextmanager
def switched_on() -> Iterator[None]:
    """`accelerator=auto` finds the device, and torch its generators and its allocator's figures."""
    figures = {
        "max_memory_allocated": lambda device: allocator.peak,
        "max_memory_reserved": lambda device: allocator.peak,
        "reset_peak_memory_stats": lambda device: allocator.reset_peak(),
        "empty_cache": lambda: None,
        "get_memory_info": lambda device: (2**40, 2**40),
    }
    gc.collect()  # what earlier tests left on the device
    with pytest.MonkeyPatch.context() as patch, _OwnGenerators():
        for name, figure in figures.items():
            patch.setattr(torch.accelerator, name, figure)
        patch.setattr(torch, "Generator", _Generator)
        patch.setitem(globals(), "_on", True)
        patch.setitem(globals(), "counts", Counts())
        torch.__future__.set_swap_module_params_on_conversion(True)  # a module that moves keeps its parameters
        yield
        torch.__future__.set_swap_module_params_on_conversion(False)
    DeviceGenerator.known = {noise._cdata: noise}
