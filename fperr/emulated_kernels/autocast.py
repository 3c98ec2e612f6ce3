"""PyTorch's autocast on CUDA, on any device.

Autocast is a key of PyTorch's dispatcher, above autograd, so that autograd casts gradients back.
Here the casts of CUDA's lists are kernels of a key that no tensor of anybody's has (that of the
IPU, whose backend PyTorch has dropped), and tensors of every device get that key inside a block.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from fperr.emulated_kernels import autocast_lists as lists

_DEVICE, _KEY_NAME = "ipu", "AutocastIPU"
_KEY = getattr(torch._C.DispatchKey, _KEY_NAME)
_WITHOUT = torch._C.DispatchKeySet(_KEY)


@contextmanager
def autocast(dtype: torch.dtype) -> Iterator[None]:
    """Run a block under CUDA's autocast to a half format, wherever its tensors are.

    Weights are cast at each use: PyTorch keeps the casts of leaves, which adds the gradients of
    one that two operations use in the half format.
    """
    _registered()
    was_on, dtype_before = torch.is_autocast_enabled(_DEVICE), torch.get_autocast_dtype(_DEVICE)
    try:
        torch.set_autocast_dtype(_DEVICE, dtype)
        torch.set_autocast_enabled(_DEVICE, True)
        with torch._C._IncludeDispatchKeyGuard(_KEY):
            yield
    finally:
        torch.set_autocast_enabled(_DEVICE, was_on)
        torch.set_autocast_dtype(_DEVICE, dtype_before)


@contextmanager
def no_autocast() -> Iterator[None]:
    """Run a block without it, inside a block with it."""
    if autocast_dtype() is None:
        yield
        return
    torch.set_autocast_enabled(_DEVICE, False)
    try:
        with torch._C._ExcludeDispatchKeyGuard(_WITHOUT):
            yield
    finally:
        torch.set_autocast_enabled(_DEVICE, True)


def autocast_dtype() -> torch.dtype | None:
    """The half format to which this thread casts operations; None outside of such a block."""
    is_on = torch.is_autocast_enabled(_DEVICE)
    return torch.get_autocast_dtype(_DEVICE) if is_on else None


@cache
def _registered() -> tuple[torch.library.Library, ...]:
    """The kernels of the key; they live as long as the libraries."""
    library: Any = torch.library.Library  # not annotated
    others = library("_", "IMPL", _KEY_NAME)
    others.fallback(torch.library.fallthrough_kernel, _KEY_NAME)
    listed = library("aten", "IMPL", _KEY_NAME)
    policies: tuple[tuple[tuple[str, ...], Callable[..., Any]], ...] = (
        (lists.HALF, _in_half),
        (lists.FLOAT32, _in_float32),
        (lists.FLOAT32_RESULT, _with_float32_result),
        (tuple(lists.FLOAT32_NORMS), _with_float32_norm),
        (lists.WIDEST, _in_widest),
        (lists.REFUSED, _refused),
    )
    for names, policy in policies:
        for name in names:
            if _has(name):  # of newer versions, perhaps
                listed.impl(name, _kernel(_overload(name), policy))
    return others, listed


def _has(name: str) -> bool:
    return bool(torch._C._dispatch_has_kernel(f"aten::{name}"))


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _kernel(function: Any, policy: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel of an operation; what is inside the operation is cast no more, as in PyTorch."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_WITHOUT):
            return policy(function, args, kwargs)

    return run


def _is_eligible(value: Any) -> bool:
    is_floating = isinstance(value, Tensor) and value.is_floating_point()
    return is_floating and value.dtype != torch.float64


def _cast(values: Any, dtype: torch.dtype) -> Any:
    return pytree.tree_map(lambda v: v.to(dtype) if _is_eligible(v) else v, values)


def _in_half(function: Any, args: Any, kwargs: Any) -> Any:
    dtype = torch.get_autocast_dtype(_DEVICE)
    return function(*_cast(args, dtype), **_cast(kwargs, dtype))


def _in_float32(function: Any, args: Any, kwargs: Any) -> Any:
    return function(*_cast(args, torch.float32), **_cast(kwargs, torch.float32))


def _with_float32_result(function: Any, args: Any, kwargs: Any) -> Any:
    if not _is_eligible(args[0]):
        return function(*args, **kwargs)
    names = [argument.name for argument in function._schema.arguments]
    position = names.index("dtype")
    if position < len(args):
        dtype = torch.float32 if args[position] is None else args[position]
        return function(*args[:position], dtype, *args[position + 1 :], **kwargs)
    dtype = kwargs.get("dtype")
    return function(*args, **kwargs | {"dtype": torch.float32 if dtype is None else dtype})


def _with_float32_norm(function: Any, args: Any, kwargs: Any) -> Any:
    name = f"{function.overloadpacket.__name__}.{function._overloadname}"
    dtype = torch.float32 if _is_eligible(args[0]) else args[0].dtype
    rest = function._schema.arguments[len(args) :]
    others = [kwargs.get(argument.name, argument.default_value) for argument in rest]
    by_dtype = _overload(lists.FLOAT32_NORMS[name])
    return by_dtype(*args, *others, dtype=dtype)


def _in_widest(function: Any, args: Any, kwargs: Any) -> Any:
    half = torch.get_autocast_dtype(_DEVICE)
    dtypes = {v.dtype for v in pytree.tree_leaves((args, kwargs)) if _is_eligible(v)}
    if not dtypes <= {half, torch.float32}:
        raise RuntimeError("Unexpected floating ScalarType in at::autocast::prioritize")
    dtype = torch.float32 if torch.float32 in dtypes else half
    return function(*_cast(args, dtype), **_cast(kwargs, dtype))


def _refused(function: Any, args: Any, kwargs: Any) -> Any:
    del args, kwargs
    name = function.overloadpacket.__name__
    raise RuntimeError(
        f"CUDA's autocast refuses torch.nn.functional.{name}, whose gradient a half format may not "
        f"hold: use {name}_with_logits"
    )
