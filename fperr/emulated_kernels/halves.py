"""Operations on half numbers: float32 inside, one rounding."""

from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
# normalisations -> position of their weight; their input decides the dtype of their result
_WEIGHTS = {
    "native_layer_norm": 2, "native_batch_norm": 1, "native_group_norm": 1,
    "native_layer_norm_backward": 5, "native_batch_norm_backward": 2,
    "native_group_norm_backward": 4,
}  # fmt: skip
_KEEP_STATISTICS = ("native_layer_norm", "native_batch_norm")  # in float32, on CUDA


def in_float32(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], run: Callable[..., Any]
) -> Any:
    """An operation on half numbers in float32, its results rounded once.

    Views, copies and casts move numbers, and operations in place are the CPU's own, which compute
    elementwise in float32 as well. So are those that also have operands in float32, as autocast
    mixes them: their results are float32.

    Args:
        function: The operation.
        args: Its positional arguments.
        kwargs: Its other arguments.
        run: Runs an operation on float32 numbers, given these three.
    """
    tensors = [a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
    halves = {t.dtype for t in tensors if t.dtype in HALVES}
    schema, name = function._schema, function.overloadpacket.__name__
    moves = "copy" in name or any(r.alias_info for r in schema.returns)
    if len(halves) != 1 or schema.is_mutable or moves:
        return function(*args, **kwargs)
    is_mixed = any(t.dtype == torch.float32 and t.dim() for t in tensors)
    if is_mixed and name not in _WEIGHTS:
        return function(*args, **kwargs)
    (half,) = halves
    widened = _mapped(half, torch.float32)
    narrowed = _mapped(torch.float32, half)
    result = run(function, pytree.tree_map(widened, args), pytree.tree_map(widened, kwargs))
    if name not in _WEIGHTS:
        return pytree.tree_map(narrowed, result)
    weight = args[_WEIGHTS[name]]
    is_wide = name in _KEEP_STATISTICS or (weight is not None and weight.dtype == torch.float32)
    return narrowed(result[0]), *(r if is_wide else narrowed(r) for r in result[1:])


def _mapped(source: torch.dtype, target: torch.dtype) -> Callable[[Any], Any]:
    """A function that casts tensors, and names of dtypes, from one dtype to the other."""

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(target) if value.dtype == source else value
        return target if value is source else value

    return cast
