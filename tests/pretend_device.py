"""A pretend accelerator: tensors that say `pretend:0` or `pretend:1`, with numbers on the CPU.

It refuses what CUDA refuses: operands on two devices, CPU indices where CUDA wants its own,
`.numpy()`, a CPU generator that fills a device's tensor. It counts what makes a host wait
(`synchronisations`) and the bytes that are copied to and from the CPU, and it has a memory of a
given size, beyond which it raises CUDA's `OutOfMemoryError`.

What it cannot imitate: kernels that sum in another order (its bits are the CPU's); generators of
its own (PyTorch gives none to a backend written in Python: whatever draws on it is refused, so draw
on the CPU and move); streams, and reads before a copy has ended; memory fragmentation, and memory
that is full in a backward pass; autocast's lists for CUDA; kernels that CUDA has not;
`module.to()` as CUDA has it (a wrapper is no `.data`: see `swapped_parameters`). Backward passes on
`pretend:1` need autograd's threads off (`torch.autograd.set_multithreading_enabled(False)`):
PyTorch makes one thread for each device that the backend counts, and a Python backend counts one.

A process has one accelerator: once this backend is there, autograd's engine takes it for the card's
(PyTorch 2.11: every backward pass on CUDA ended in an assertion). So where there is a card, it is
not registered, and the tests of the pretend device are skipped.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx.experimental.proxy_tensor as proxy_tensor
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

IS_THERE = not torch.cuda.is_available()
NAME = "pretend" if IS_THERE else "privateuseone"
_aten = torch.ops.aten


class _Backend(_DummyBackendModule):
    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    # what PyTorch asks before it uses a device by itself (`fork_rng`, `nn.DataParallel`): other
    # tests of the process do without
    @staticmethod
    def is_available() -> bool:
        return False

    @staticmethod
    def device_count() -> int:
        return 0


if IS_THERE:
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
DEVICE, SECOND = torch.device(NAME, 0), torch.device(NAME, 1)


@dataclass
class Counts:
    """What has happened on the device.

    Attributes:
        synchronisations: How often the host waited, by operation.
        bytes_to_cpu, bytes_from_cpu: Bytes copied.
        bytes_held: Bytes of the tensors that live on it.
        most_bytes: Size of its memory; None: no limit.
    """

    synchronisations: Counter[str] = field(default_factory=Counter)
    bytes_to_cpu: int = 0
    bytes_from_cpu: int = 0
    bytes_held: int = 0
    most_bytes: int | None = None


COUNTS = Counts()
_holders: Counter[int] = Counter()  # tensors that share a storage, by its address
_counting = threading.RLock()  # tensors of autograd's threads end there


@contextmanager
def counted(most_bytes: int | None = None) -> Iterator[Counts]:
    """Counts of the block alone; its memory holds `most_bytes` beside what is there already."""
    before, held = COUNTS.most_bytes, COUNTS.bytes_held
    COUNTS.synchronisations, COUNTS.bytes_to_cpu, COUNTS.bytes_from_cpu = Counter(), 0, 0
    COUNTS.most_bytes = None if most_bytes is None else held + most_bytes
    try:
        yield COUNTS
    finally:
        COUNTS.most_bytes = before


def _hold(tensor: "Pretend") -> None:
    """Count the storage of a new tensor, and release it with the last tensor that shares it."""
    storage = tensor.raw.untyped_storage()
    address, size = storage.data_ptr(), storage.nbytes()
    if not address:
        return
    with _counting:
        if not _holders[address]:
            is_full = COUNTS.most_bytes is not None and COUNTS.bytes_held + size > COUNTS.most_bytes
            # an error of Python's in a thread of autograd's own ends the process
            if is_full and threading.current_thread() is threading.main_thread():
                raise torch.OutOfMemoryError(
                    f"pretend out of memory. Tried to allocate {size} bytes."
                )
            COUNTS.bytes_held += size
        tensor.share = _Share(storage, address, size)


class _Share:
    """A tensor's share in a storage; it ends with the tensor.

    PyTorch swaps no tensor that a weak reference watches. The share keeps the storage: else its
    address might be another one's while it is still counted.
    """

    def __init__(self, storage: torch.UntypedStorage, address: int, size: int) -> None:
        self.storage, self.address, self.size = storage, address, size
        _holders[address] += 1

    def __del__(self) -> None:
        with _counting:
            _holders[self.address] -= 1
            if not _holders[self.address]:
                del _holders[self.address]
                COUNTS.bytes_held -= self.size


class Pretend(Tensor):
    """A tensor on the pretend device; `raw` holds its numbers."""

    raw: Tensor
    share: "_Share"

    @staticmethod
    def __new__(cls, raw: Tensor, device: torch.device = DEVICE) -> "Pretend":
        tensor = Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(),
            dtype=raw.dtype, device=device, requires_grad=False,
        )  # fmt: skip
        tensor.raw = raw
        _hold(tensor)
        return tensor

    def __repr__(self, **_: Any) -> str:
        return f"Pretend({self.raw}, device='{self.device}')"

    def tolist(self) -> Any:
        COUNTS.synchronisations["tolist"] += 1
        COUNTS.bytes_to_cpu += self.raw.nbytes
        return self.raw.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy "
            "the tensor to host memory first."
        )

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(function, args, kwargs or {})


_COPIES = {_aten._to_copy.default, _aten.copy_.default, _aten._copy_from.default}
# CPU indices are moved by CUDA itself in these, and in no other operation
_INDEXED = {
    _aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default,
    _aten._index_put_impl_.default, _aten._unsafe_index.Tensor,
}  # fmt: skip
# the host reads the result, or its shape
_WAITING = {
    _aten._local_scalar_dense.default, _aten.equal.default, _aten.nonzero.default,
    _aten.masked_select.default, _aten._unique2.default, _aten.unique_dim.default,
    _aten.unique_consecutive.default, _aten.is_nonzero.default, _aten.allclose.default,
    _aten.repeat_interleave.Tensor,
}  # fmt: skip
_RANDOM = {"rand", "randn", "randint", "normal", "uniform", "bernoulli", "random", "randperm"}


def _run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    leaves = pytree.tree_leaves((args, kwargs))
    device = _common_device(function, leaves, kwargs)
    name = function.overloadpacket.__name__.rstrip("_")
    if name in _RANDOM or (name.endswith("_like") and name[:-5] in _RANDOM):
        generator = kwargs.get("generator")
        found = "no generator" if generator is None else f"'{generator.device}'"
        raise RuntimeError(
            f"Expected a '{NAME}' device type for generator but found {found} ({function})"
        )
    if function in _WAITING or _has_mask(function, args):
        COUNTS.synchronisations[str(function)] += 1
    if function is _aten.copy_.default:
        return _copied(args[0], args[1])
    result = function(*pytree.tree_map(_raw, args), **pytree.tree_map(_raw, kwargs))
    if function is _aten._to_copy.default:
        target = kwargs.get("device")
        if target is not None and torch.device(target).type != NAME:
            COUNTS.synchronisations["to the CPU"] += 1
            COUNTS.bytes_to_cpu += result.nbytes
            return result
        device = device if target is None else _numbered(torch.device(target))
        if not any(isinstance(leaf, Pretend) for leaf in leaves):
            COUNTS.bytes_from_cpu += result.nbytes
    elif kwargs.get("device") is not None and torch.device(kwargs["device"]).type != NAME:
        return result
    same = {id(leaf.raw): leaf for leaf in leaves if isinstance(leaf, Pretend)}

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        known = same.get(id(value))  # the result of an operation in place is its operand
        return Pretend(value, device) if known is None else known

    return pytree.tree_map(wrapped, result)


def _common_device(function: Any, leaves: list[Any], kwargs: dict[str, Any]) -> torch.device:
    """The one device of the operands.

    Raises:
        RuntimeError: There are two, and the operation is no copy.
    """
    devices = {leaf.device for leaf in leaves if isinstance(leaf, Pretend)}
    if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == NAME:
        devices = devices or {_numbered(torch.device(kwargs["device"]))}
    if function not in _COPIES:
        others = {
            leaf.device
            for leaf in leaves
            if isinstance(leaf, Tensor) and not isinstance(leaf, Pretend) and leaf.dim() > 0
        }
        if function in _INDEXED:
            others = set()
        if len(devices | others) > 1:
            found = " and ".join(sorted(str(device) for device in devices | others))
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{found}! ({function})"
            )
    return min(devices, key=str) if devices else DEVICE


def _has_mask(function: Any, args: tuple[Any, ...]) -> bool:
    """Whether an index is a mask, whose true entries the host must count."""
    if function not in _INDEXED:
        return False
    return any(
        isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    )


def _copied(target: Tensor, source: Tensor) -> Tensor:
    if isinstance(source, Pretend) and not isinstance(target, Pretend):
        COUNTS.synchronisations["to the CPU"] += 1
        COUNTS.bytes_to_cpu += source.raw.nbytes
    elif isinstance(target, Pretend) and not isinstance(source, Pretend):
        COUNTS.bytes_from_cpu += source.nbytes
    _raw(target).copy_(_raw(source))
    return target


def _raw(value: Any) -> Any:
    if isinstance(value, Pretend):
        return value.raw
    if isinstance(value, torch.device) and value.type == NAME:
        return torch.device("cpu")
    return value


def _numbered(device: torch.device) -> torch.device:
    return DEVICE if device.index is None else device


def _made(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def make(*args: Any, **kwargs: Any) -> Tensor:
        device = kwargs.get("device")
        raw = operation(*args, **{**kwargs, "device": torch.device("cpu")})
        return Pretend(raw, DEVICE if device is None else _numbered(torch.device(device)))

    return make


if IS_THERE:
    _library = torch.library.Library("aten", "IMPL", "PrivateUse1")  # lives as long as the module
    _library.impl("empty.memory_format", _made(_aten.empty.memory_format))
    _library.impl("empty_strided", _made(_aten.empty_strided.default))
    # PyTorch makes these by resizing, which a wrapper cannot
    _library.impl("eye", _made(_aten.eye.default))
    _library.impl("eye.m", _made(_aten.eye.m))
    _library.impl("_copy_from", lambda source, target, *_: _copied(target, source))
    # graphs are captured of the tensors that this tuple names
    proxy_tensor.HANDLED_TYPES = (*proxy_tensor.HANDLED_TYPES, Pretend)  # type: ignore[assignment]


@contextmanager
def swapped_parameters() -> Iterator[None]:
    """Modules move and change their dtype by swapping parameters, as wrappers need it."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
